"""Checks of arguments: each raises a `GapinitError` that names the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, get_args

from gapinit.errors import GapinitError


def check_choice(name: str, value: object, known: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s."""
    if value not in get_args(known):
        raise GapinitError(f"{name}: expected one of {', '.join(get_args(known))}, found {value!r}")


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int; refuse anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise GapinitError(f"{name}: expected a whole number of at least {least}, found {value!r}")
    return int(value)


def check_amount(name: str, value: Any) -> None:
    """Refuse a number that is negative or not finite."""
    if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
        raise GapinitError(f"{name}: expected a finite number of at least 0, found {value!r}")

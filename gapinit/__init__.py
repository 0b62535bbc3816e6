"""Rank-1 LoRA for vision-language models, initialised along the modality gap.

    gapinit.gap_vector(h_text, h_vision)    the gap of one layer, (d,)
    gapinit.spot_gap(h_text, h_vision)      its SPOT-Gap score, `.score` and `.per_sample`

Names are imported when they are first used, so that `import gapinit` costs no numpy or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapinit.errors import GapinitError
    from gapinit.gap import gap_vector
    from gapinit.spot import spot_gap

    __version__: str

__all__ = ["GapinitError", "__version__", "gap_vector", "spot_gap"]

# No name here may be that of a submodule (`gap`, `spot`, ...): importing a submodule binds its
# name in the package, and the attribute would mean one thing before and another thing after.
_MODULES = {
    "GapinitError": "gapinit.errors",
    "gap_vector": "gapinit.gap",
    "spot_gap": "gapinit.spot",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'gapinit' has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gapinit")
    except PackageNotFoundError:
        # The workflow's rules import a checkout that need not be installed.
        return "0+unknown"

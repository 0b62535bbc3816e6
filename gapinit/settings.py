"""Read a YAML file into a pydantic model, or say which key of which file is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gapinit.errors import GapinitError

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of everything that is read from YAML: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def read_settings(path: Path, model: type[Model]) -> Model:
    """Read the YAML file at `path` as `model`; each wrong key is named with its file."""
    return check_settings(read_yaml(path), model, origin=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapinitError(f"{path}: not valid YAML ({_one_line(str(error))})") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise GapinitError(f"{path}: expected a mapping of keys to values at the top level")
    return content


def check_settings(content: Mapping[str, Any], model: type[Model], origin: str) -> Model:
    """Validate `content` as `model`; `origin` says in the error message where it came from."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_describe(problem, model) for problem in error.errors()]
        raise GapinitError("\n".join(f"{origin}: {problem}" for problem in problems)) from None


def _describe(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_suggestion(str(problem['loc'][-1]), problem['loc'], model)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"key '{key}': {message}, found {problem['input']!r}"


def _suggestion(key: str, location: tuple[Any, ...], model: type[BaseModel]) -> str:
    """Name the accepted keys that look most like the unknown one, at the place where it stands."""
    fields = dict(model.model_fields)
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        fields = dict(getattr(annotation, "model_fields", {}))
    close = difflib.get_close_matches(key, fields, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (expected one of: {', '.join(sorted(fields))})" if fields else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""Read YAML files into pydantic models; error messages name the file and the key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from gapinit.errors import GapinitError

Model = TypeVar("Model", bound=BaseModel)
Origin = str | Callable[[Sequence[Any]], str]


class Settings(BaseModel):
    """Base of all models read from YAML: immutable, without unknown keys."""

    # Not strict: YAML 1.1 reads 2e-4, without a decimal point, as text.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject `yes` and `on` as numbers: YAML reads booleans, which pydantic converts to 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("input should not be a boolean")
        return value


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that rejects repeated keys; plain YAML silently drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"repeated key '{key.value}'"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_settings(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as `model`; raise GapinitError that names the file and each wrong key."""
    return check_settings(read_yaml(path), model, origin=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    # ValueError: not UTF-8, too many digits for Python, an impossible date.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise GapinitError(f"{path}: not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        raise GapinitError(f"{path}: expected a mapping of keys to values at the top level")
    return content


def place_of(origin: Origin, key: Sequence[Any]) -> str:
    """Return the file of a key, given as its path from the top."""
    return origin if isinstance(origin, str) else origin(key)


def check_settings(content: Mapping[str, Any], model: type[Model], origin: Origin) -> Model:
    """Validate `content` as `model`.

    `origin` is the file for error messages or, if `content` was merged from several files, a
    function that returns the file of a key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{place_of(origin, problem['loc'])}: {_describe(problem, model)}"
            for problem in error.errors()
        ]
        raise GapinitError("\n".join(problems)) from None


def _describe(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_suggestion(problem['loc'], model)}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not problem["loc"]:  # about several keys, which the message names
        return message
    return f"key '{key}': {message}, found {problem['input']!r}"


def _suggestion(location: Sequence[Any], model: type[BaseModel]) -> str:
    """Return the known key most similar to the unknown one, or all known keys."""
    fields = _fields(model)
    for part in location[:-1]:  # fields of models; list indices and keys of mappings are skipped
        inner = _model_in(fields[part].annotation) if part in fields else None
        fields = _fields(inner) if inner else fields
    names = sorted(fields)
    # Hyphens and underscores are most often confused.
    close = difflib.get_close_matches(location[-1].replace("_", "-"), names, n=1)
    close = close or difflib.get_close_matches(location[-1], names, n=1)
    return f" (did you mean '{close[0]}'?)" if close else f" (expected one of: {', '.join(names)})"


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for one in get_args(annotation) if (model := _model_in(one))), None)

"""Published architectures without their weights, from `config/architectures/<name>.yaml`.

Nothing is downloaded: the file holds what the published `config.json` and
`preprocessor_config.json` say. A model is built on any device, `meta` included, with random
weights, the real image processor and a stand-in tokenizer (`stand_in.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from gapinit.backbones import find_family, known_families
from gapinit.backbones.source import Dtype
from gapinit.config.yaml_files import Settings, read_settings
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import torch

    from gapinit.backbones.base import Backbone

VALUE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class ImageProcessor(Settings):
    """A class of transformers, and what it is called with."""

    class_name: str = Field(alias="class")
    arguments: dict[str, Any] = {}


class TemplateTokens(Settings):
    """How many tokens the published tokenizer makes of a caption's template."""

    head: int = Field(default=0, ge=0)
    prompt: int = Field(default=1, ge=0)


class Architecture(Settings):
    """What a published model is: everything but its numbers."""

    config: dict[str, Any]
    """Its Hugging Face configuration, as far as it differs from the class's defaults."""
    image_processor: ImageProcessor
    dtype: Dtype = "float32"
    """What its weights are stored in."""
    licence: str = ""
    gated: bool = False
    """Whether the hub asks for an account that has accepted the licence."""
    template_tokens: TemplateTokens = TemplateTokens()

    @field_validator("config")
    @classmethod
    def _known_family(cls, config: dict[str, Any]) -> dict[str, Any]:
        known = known_families()
        if config.get("model_type") not in known:
            raise ValueError(
                f"model_type '{config.get('model_type')}' is not supported, expected one of: "
                f"{', '.join(known)}"
            )
        return config


def read_architecture(path: Path) -> Architecture:
    """Read and check one architecture file."""
    return read_settings(path, Architecture)


def find_architecture(name: str, folder: Path) -> Architecture:
    """Read the architecture of a backbone; `folder` is `config/`. An error lists those known."""
    path = folder / "architectures" / f"{name}.yaml"
    if path.is_file():
        return read_architecture(path)
    known = sorted(file.stem for file in (folder / "architectures").glob("*.yaml"))
    if not known:
        raise GapinitError(
            f"{folder}: no architectures here, expected {folder}/architectures/*.yaml. Give the "
            "checkout's config folder with --config-folder."
        )
    raise GapinitError(
        f"backbone '{name}': no architecture in {folder}/architectures/, expected one of: "
        f"{', '.join(known)}"
    )


def build_architecture(
    architecture: Architecture,
    origin: str,
    device: torch.device | str = "meta",
    dtype: Dtype | None = None,
) -> Backbone:
    """Return the family's backbone with random weights, frozen, on a device and in a dtype.

    Raises GapinitError, with `origin`, for a configuration that transformers refuses.
    """
    import torch
    import transformers

    from gapinit.backbones.loading import Processor
    from gapinit.backbones.stand_in import stand_in_tokenizer, with_special_ids

    kind = architecture.config["model_type"]
    family: Any = find_family(kind)
    tokenizer = stand_in_tokenizer(kind)
    given = with_special_ids(architecture.config, tokenizer)
    reader = getattr(transformers, architecture.image_processor.class_name, None)
    if reader is None:
        raise GapinitError(
            f"{origin}: key 'image_processor.class': transformers has no class "
            f"'{architecture.image_processor.class_name}'"
        )
    try:
        config = family.model_class.config_class(
            **{key: value for key, value in given.items() if key != "model_type"}
        )
        with torch.device(device), _default_dtype(dtype or architecture.dtype):
            model = family.model_class(config)
        processor = Processor(tokenizer, reader(**architecture.image_processor.arguments))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise GapinitError(f"{origin}: no model can be made of this ({reason})") from None
    # The model itself takes its end of text from here when it generates.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval().requires_grad_(False)
    backbone: Backbone = family(model, processor)
    return backbone


@contextmanager
def _default_dtype(name: Dtype) -> Iterator[None]:
    """Make new tensors of a dtype during the block."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)

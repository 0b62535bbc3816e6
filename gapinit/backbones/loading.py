"""Load weights, tokenizer and image processor from a folder, with errors that name it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gapinit.artifacts.artifacts import read_json
from gapinit.backbones.source import read_source
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


@dataclass(frozen=True)
class Processor:
    """A model's tokenizer and image processor."""

    tokenizer: Any
    image_processor: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write both into a folder, from which `Backbone.load_processor` reads them."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def load_processor(name: str | Path, **options: Any) -> Processor:
    """Load the tokenizer and the image processor of a model, from a folder or the hub.

    They are loaded separately: some processor classes require a video processor and so torchvision.
    Without torchvision the image processor's PIL variant is used. `options` are passed to both
    `from_pretrained` (`revision`, `local_files_only`, ...).
    """
    # By default transformers asks on the terminal whether to run code from the folder.
    options["trust_remote_code"] = False
    return Processor(
        AutoTokenizer.from_pretrained(name, **options),
        AutoImageProcessor.from_pretrained(name, **options),
    )


def load_family(family: type[Backbone], folder: Path, device: str) -> Backbone:
    """Load frozen weights (safetensors only) and the processor from a `save_pretrained` folder.

    Raises GapinitError for a configuration that the family does not support, for missing
    safetensors, for damaged or incomplete weights, and for a processor that does not work.
    """
    family.check_config(read_json(folder / "config.json"), str(folder))
    if not any(folder.glob("*.safetensors")):
        raise GapinitError(
            f"{folder}: no *.safetensors here (pickled weights are never loaded). Get the "
            "safetensors files of this model."
        )
    source = read_source(folder)
    model = _load_weights(family.model_class, folder, source.dtype)
    # ASSUME: frozen layers have no dropout, not even in training (design, Section 4).
    model.eval().requires_grad_(False).to(device)
    with _readable(folder):
        processor = family.load_processor(folder)
        backbone = family(model, processor, source.prompts.applied_to(family.default_prompts))
        # Some errors occur only when a text or an image is processed.
        processor.tokenizer("a")
        backbone.pixels([Image.new("RGB", (32, 32))])
    tokens, rows = len(processor.tokenizer), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise GapinitError(
            f"{folder}: the tokenizer has {tokens} tokens, but the model has {rows} embeddings: "
            "they belong to different models. Get both from the same place."
        )
    return backbone


def _load_weights(model_class: Any, folder: Path, dtype: str | None) -> Any:
    """Load a model from safetensors; `dtype`: None for the stored one."""
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    with _readable(folder), no_progress_bars():
        model, report = model_class.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:
        # Hugging Face would initialise them at random and continue.
        raise GapinitError(
            f"{folder}: the weights lack {len(report['missing_keys'])} tensors of this model, "
            f"for example '{min(report['missing_keys'])}'. Make or download the folder again."
        )
    return model


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn every error in the block into a GapinitError that names the folder."""
    try:
        yield
    except GapinitError:
        raise
    except BaseException as error:
        # The tokenizers library raises PanicException, a BaseException, for some files.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise GapinitError(f"{folder}: this backbone cannot be loaded ({reason})") from None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off Hugging Face's progress bars in the block unless stderr is a terminal."""
    silence = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if silence:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            transformers_logging.enable_progress_bar()

"""Read weights, tokenizer and image processor from a folder, or say what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gapinit.errors import GapinitError


@dataclass(frozen=True)
class Processor:
    """What reads text and images for a model: the two halves of a Hugging Face processor."""

    tokenizer: Any
    image_processor: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write both into a folder, where `Backbone.load_processor` finds them."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def load_processor(name: str | Path, **options: Any) -> Processor:
    """Load tokenizer and image processor of a model, from a folder or the hub.

    Each on its own: some processor classes insist on a video processor, and that on torchvision,
    which is not needed here. Without torchvision an image processor is its PIL variant. `options`
    go to both `from_pretrained` (`revision`, `local_files_only`, ...).
    """
    # Unset, transformers would ask on the terminal whether to run code that came with the files.
    options["trust_remote_code"] = False
    return Processor(
        AutoTokenizer.from_pretrained(name, **options),
        AutoImageProcessor.from_pretrained(name, **options),
    )


def load_weights(model_class: Any, folder: Path, dtype: str | None) -> Any:
    """Load a model from safetensors; `dtype`: None for that of the file.

    Raises GapinitError for weights that are damaged or do not fill the model.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        with no_progress_bars():
            model, report = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a configuration of others may break anything inside
        raise cannot_be_loaded(folder, error) from None
    if report["missing_keys"]:
        # Hugging Face would fill them with random numbers and go on.
        raise GapinitError(
            f"{folder}: the weights lack {len(report['missing_keys'])} tensors of this model, "
            f"for example '{min(report['missing_keys'])}'. Make or download the folder again."
        )
    return model


def cannot_be_loaded(folder: Path, error: BaseException) -> GapinitError:
    """Return the error for a folder that a library could not read, with that one's reason."""
    reason = " ".join(str(error).split())
    return GapinitError(f"{folder}: this backbone cannot be loaded ({reason})")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence Hugging Face's own bars during the block, unless someone watches a terminal."""
    silence = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if silence:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            transformers_logging.enable_progress_bar()

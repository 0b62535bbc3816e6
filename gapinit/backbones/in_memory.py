"""Wrap a model in memory, plain or under PEFT, as the backbone of its family.

PEFT wraps modules and inserts names of its own. Here every module has its name in the plain model,
so that gaps measured on the plain model are found for the adapted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import get_bnb_param_type
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from gapinit.backbones import find_family, import_family, known_families
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


class DecoderLinear(NamedTuple):
    """A linear module inside a decoder layer, and the index of that layer."""

    layer: int
    module: nn.Module
    """The adapter's wrapper where there is one."""


def wrap_model(model: Any, processor: Any = None) -> Backbone:
    """Return the backbone around a Hugging Face model or a PeftModel, without a copy of it.

    `processor`: needed only to read images and captions. Raises GapinitError, listing the supported
    classes, for another model or processor.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    model_type: Any = getattr(getattr(plain, "config", None), "model_type", None)
    family = find_family(model_type)
    if family is None or not isinstance(plain, family.model_class):
        supported = ", ".join(
            f"{import_family(where).model_class.__name__} ('{known}')"
            for known, where in known_families().items()
        )
        raise GapinitError(
            f"model: {type(plain).__name__} (model type {model_type!r}) is not supported, expected "
            f"one of: {supported}; or a PeftModel around one. docs/backbones.md says how to add a "
            "family."
        )
    if processor is not None and not (
        hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
    ):
        raise GapinitError(
            f"processor: expected the model's processor (AutoProcessor.from_pretrained), with a "
            f"tokenizer and an image processor, found {type(processor).__name__}"
        )
    return family(plain, processor)


def target_modules(model: Any, layers: Sequence[int], *, vision: bool = False) -> str:
    """Return a pattern of the layers' attention and MLP matrices for `LoraConfig(target_modules)`.

    It contains full names, so it never matches modules of the same name in the vision tower;
    `vision` adds all matrices of the tower. `model`: as in `gapinit.estimate_gap`.
    """
    backbone = wrap_model(model)
    check_layers(backbone, layers)
    return backbone.target_modules(layers, vision=vision)


def check_layers(backbone: Backbone, layers: Sequence[int]) -> None:
    """Raise GapinitError if there is no layer, or one that the decoder does not have."""
    if not layers or min(layers) < 0 or max(layers) >= backbone.num_layers:
        raise GapinitError(
            f"layers: expected decoder layers from 0 to {backbone.num_layers - 1}, found "
            f"{list(layers)}"
        )


def base_of(module: nn.Module) -> Any:
    """Return the model's own module under an adapter's wrapper, or the module itself."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module


def base_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the plain model's modules, wrapped or not, with their names in the plain model."""
    yield name, module
    for child_name, child in base_of(module).named_children():
        yield from base_modules(child, f"{name}.{child_name}" if name else child_name)


def decoder_linears(backbone: Backbone) -> dict[str, DecoderLinear]:
    """Return the linear modules of the decoder layers by name, bottom layer first."""
    index = {id(layer): number for number, layer in enumerate(backbone.decoder_layers)}
    return {
        name: DecoderLinear(index[id(layer)], module)
        for layer_name, layer in base_modules(backbone.model)
        if id(layer) in index
        for name, module in base_modules(layer, layer_name)
        if _is_linear(base_of(module))
    }


def _is_linear(module: Any) -> bool:
    # Not all quantised modules are subclasses of nn.Linear, but they have its two sizes.
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes)


def holds_numbers(parameter: Any) -> bool:
    """Return whether a parameter is in memory and not quantised."""
    return (
        isinstance(parameter, torch.Tensor)
        and type(parameter.data) is torch.Tensor  # torchao and DTensor define other types
        and not parameter.is_meta
        and parameter.is_floating_point()
        and parameter.element_size() >= 2  # float8 needs a scale
        and not get_bnb_param_type(cast(nn.Parameter, parameter))
    )


@contextmanager
def frozen_base(model: nn.Module) -> Iterator[None]:
    """Run the block with the plain model in evaluation mode and without gradients.

    Afterwards modes, adapters and `requires_grad` are restored. Raises GapinitError for a merged
    adapter, which has changed the plain model's weights.
    """
    wrappers = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in wrappers):
        raise GapinitError(
            "model: an adapter is merged into the weights, so the plain model cannot be measured. "
            "Call unmerge_adapter() first."
        )
    enabled = [module for module in wrappers if not module.disable_adapters]
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for wrapper in enabled:
            wrapper.enable_adapters(False)
        with torch.no_grad():
            yield
    finally:
        for wrapper in enabled:
            wrapper.enable_adapters(True)
        for module, mode in modes:
            module.training = mode
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)

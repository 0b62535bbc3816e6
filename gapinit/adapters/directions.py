"""Where each LoRA module of a model should point, by a gap that was measured on that model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import (
    dequantize_bnb_weight,
    dequantize_module_weight,
    get_bnb_param_type,
)
from peft.utils.other import transpose
from torch import Tensor

from gapinit.adapters.lora import unit
from gapinit.backbones.in_memory import (
    base_modules,
    decoder_linears,
    holds_numbers,
    wrap_model,
)
from gapinit.backbones.weights_fingerprint import Comparison, model_fingerprint
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gapinit.backbones.base import Backbone
    from gapinit.gap.gap_vectors import GapVectors

Coordinates = Literal["layer", "module"]
BLOCK_ENTRIES = 1 << 24
"""Entries of a weight that are held in float64 at once."""


class Adapted(NamedTuple):
    """A LoRA module of one adapter, inside a decoder layer that the gap covers."""

    name: str
    """In the plain model."""
    layer: int
    lora: Any
    """PEFT's layer; Any: its stubs know matrices as modules only."""
    dtype: torch.dtype
    """Of the model's hidden states."""


def alignment(
    peft_model: Any,
    gap: GapVectors,
    *,
    adapter_name: str = "default",
    coordinates: Coordinates = "layer",
) -> dict[str, float]:
    """Return the cosine of B's first column to the direction of each module, by module name.

    The direction is the one that `initialize_lora_gap_weights` gives the module. A zero column
    (standard LoRA at step 0) has none: its cosine is given as 0. `GapinitError` where that
    function raises one for the model or the gap.
    """
    check_coordinates(coordinates)
    adapted, _ = adapted_modules(peft_model, gap, adapter_name)
    return column_cosines(adapted, module_directions(adapted, gap, coordinates), adapter_name)


@torch.no_grad()
def column_cosines(
    adapted: Sequence[Adapted], directions: Mapping[str, Tensor], adapter_name: str
) -> dict[str, float]:
    """Return what `alignment` returns, for modules and directions that are already known."""
    cosines = {}
    for name, _, lora, _ in adapted:
        column = lora.lora_B[adapter_name].weight[:, 0].to("cpu").double()
        length = torch.linalg.vector_norm(column)
        cosine = (column @ directions[name] / length).item() if length > 0 else 0.0
        cosines[name] = max(-1.0, min(1.0, cosine))
    return cosines


def adapted_modules(
    peft_model: Any, gap: GapVectors, adapter_name: str
) -> tuple[list[Adapted], Comparison]:
    """Return an adapter's LoRA modules in the model's order, and how the model was compared.

    `GapinitError` if there are none, the gap is of another model, or one of them lies outside the
    decoder or in a layer that the gap does not cover.
    """
    backbone = wrap_model(peft_model)
    found = _lora_modules(backbone, adapter_name)
    comparison = _require_same_model(backbone, gap)
    inside = {id(linear.module): linear.layer for linear in decoder_linears(backbone).values()}
    outside = [name for name, lora in found.items() if id(lora) not in inside]
    if outside:
        raise GapinitError(
            f"adapter '{adapter_name}' has LoRA outside the language model's decoder layers, where "
            f"no gap is measured: {_some(outside)}. Target the decoder alone, for example with "
            "target_modules=gap.target_modules(layers)."
        )
    dtype = backbone.model.dtype
    adapted = [Adapted(name, inside[id(lora)], lora, dtype) for name, lora in found.items()]
    uncovered = [one.name for one in adapted if one.layer not in gap.layers]
    if uncovered:
        raise GapinitError(
            f"the gap covers the decoder layers {', '.join(map(str, gap.layers))}, but adapter "
            f"'{adapter_name}' has LoRA in others: {_some(uncovered)}. Estimate the gap of those "
            "layers too, or leave them out."
        )
    return adapted, comparison


def _lora_modules(backbone: Backbone, adapter_name: str) -> dict[str, LoraLayer]:
    layers = {
        name: module
        for name, module in base_modules(backbone.model)
        if isinstance(module, LoraLayer)
    }
    if not layers:
        raise GapinitError(
            "peft_model: it has no LoRA layer. Add an adapter first: "
            "get_peft_model(model, LoraConfig(...))"
        )
    # Embeddings keep their matrices under a name of their own.
    owners = {
        name: {*module.lora_A.keys(), *module.lora_embedding_A.keys()}
        for name, module in layers.items()
    }
    found: dict[str, LoraLayer] = {
        name: module for name, module in layers.items() if adapter_name in owners[name]
    }
    if not found:
        known = ", ".join(sorted(set().union(*owners.values())))
        raise GapinitError(f"adapter_name: no LoRA adapter '{adapter_name}', expected: {known}")
    return found


def _require_same_model(backbone: Backbone, gap: GapVectors) -> Comparison:
    if gap.width != backbone.hidden_size:
        raise GapinitError(
            f"gap: its vectors have width {gap.width}, but the model's hidden states have "
            f"{backbone.hidden_size}: it was measured on another model"
        )
    comparison = model_fingerprint(backbone.model).compare(gap.fingerprint)
    if comparison.difference is not None:
        raise GapinitError(
            f"gap: it was measured on another model than this one ({comparison.difference}). "
            "Estimate it on this model, before anything changes its weights."
        )
    return comparison


def check_coordinates(coordinates: str) -> None:
    """Raise GapinitError for a name that is not one of `Coordinates`."""
    if coordinates not in get_args(Coordinates):
        raise GapinitError(
            f"coordinates: expected one of {', '.join(get_args(Coordinates))}, found "
            f"{coordinates!r}"
        )


def module_directions(
    adapted: Sequence[Adapted],
    gap: GapVectors,
    coordinates: Coordinates,
    vectors: Mapping[int | str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return each module's unit direction, (d_out,) float64 in main memory, by module name.

    "layer": a module that writes into the hidden space (d_out = d) takes its layer's gap g, any
    other takes W0 g, the image of the gap under its own frozen matrix. "module": the gap that was
    measured at the module's own output. `vectors` replace the gap's own, by layer or by module.
    `GapinitError` names the module that has no such direction.
    """
    directions = {}
    for one in adapted:
        key = one.layer if coordinates == "layer" else one.name
        vector = raw_vector(gap, key) if vectors is None else vectors[key]
        d_out = one.lora.out_features
        if coordinates == "layer" and d_out != gap.width:
            vector = _image(one, vector)
        if len(vector) != d_out:
            raise GapinitError(
                f"{one.name}: its output has width {d_out}, but the gap there {len(vector)}"
            )
        directions[one.name] = unit(vector, one.name)
    return directions


def raw_vector(gap: GapVectors, key: int | str) -> Tensor:
    """Return a layer's gap or a module's own gap as it was measured; it has to have a direction."""
    if isinstance(key, int):
        vector, origin = gap.vector(key), f"gap of decoder layer {key}"
    elif key in gap.modules:
        vector, origin = gap.modules[key].vector, f"gap at the output of {key}"
    elif not gap.modules:
        raise GapinitError(
            f"{key}: the gap of a '{gap.model_type}' has no modules. A model that reads images by "
            "cross-attention has nothing of an image at a module's output; use coordinates='layer'"
        )
    else:
        raise GapinitError(f"{key}: its output was not measured; use coordinates='layer'")
    unit(vector, origin)
    return vector.to("cpu", torch.float64)


@torch.no_grad()
def base_weight(one: Adapted) -> Tensor:
    """Return W0 as (d_out, d_in) floating-point numbers, dequantised where it is quantised."""
    base = one.lora.get_base_layer()
    kind = get_bnb_param_type(base.weight) if hasattr(base, "weight") else False
    try:
        # PEFT's helper for modules, given an 8-bit one in main memory, loses its scales.
        if kind:
            state = base.state if kind == "8bit" else None
            weight = dequantize_bnb_weight(base.weight, state=state)
        else:
            weight = cast(Tensor, dequantize_module_weight(base))
    except (AttributeError, TypeError, ImportError) as error:
        raise _unreadable(one, error) from None
    turned: Tensor = transpose(weight.detach(), getattr(one.lora, "fan_in_fan_out", False))
    return turned


@torch.no_grad()
def _image(one: Adapted, vector: Tensor) -> Tensor:
    """Return W0 g in float64, in main memory.

    A quantised module is asked for its answer to g instead of its weight: there are many kinds,
    and bitsandbytes keeps a 4-bit weight in another order after the first pass on a CPU.
    """
    # ASSUME: the paper does not say what modules of another width (fc1, gate, up) take.
    if one.lora.in_features != len(vector):
        raise GapinitError(
            f"{one.name}: input of width {one.lora.in_features} and output of width "
            f"{one.lora.out_features} cannot take a gap of width {len(vector)}. Leave this module "
            "out, or use coordinates='module'."
        )
    base = one.lora.get_base_layer()
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        raise GapinitError(
            f"{one.name}: its base weight is not in memory (offloaded). Load the model without "
            "offloading."
        )
    if not holds_numbers(weight):
        return _answer(one, base, vector)
    weight = base_weight(one)
    if weight.device.type == "mps":  # has no float64
        weight = weight.cpu()
    moved = vector.to(weight.device)
    blocks: Sequence[Tensor] = torch.split(weight, max(1, BLOCK_ENTRIES // len(vector)))
    return torch.cat([block.double() @ moved for block in blocks]).cpu()


def _answer(one: Adapted, base: Any, vector: Tensor) -> Tensor:
    """Return what a linear module makes of a vector, its bias taken off."""
    tensors = [*base.parameters(), *base.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    # As long as hidden states are, so that half precision and 8-bit products hold it well.
    scale = len(vector) ** 0.5 / torch.linalg.vector_norm(vector)
    states = (vector * scale).to(device, one.dtype)[None, None]
    try:
        output = base.forward(states)[0, 0]  # hooks of others are not for this
    except (AttributeError, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise _unreadable(one, error) from None
    bias = getattr(base, "bias", None)
    image: Tensor = output.cpu().double()
    return image if bias is None else image - bias.detach().cpu().double()


def _unreadable(one: Adapted, error: Exception) -> GapinitError:
    kind = type(one.lora.get_base_layer()).__name__
    return GapinitError(
        f"{one.name}: the weight of {kind} cannot be read ({error}). Leave this module out, or use "
        "coordinates='module'."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

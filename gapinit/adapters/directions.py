"""The direction of each LoRA module of a model, from a gap that was measured on that model.

With dW = (alpha / r) B A, a direction is a column of B: the line in the output space along which
the module can write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import (
    dequantize_bnb_weight,
    dequantize_module_weight,
    get_bnb_param_type,
)
from peft.utils.other import transpose
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.backbones.gradients import over_gradients
from gapinit.backbones.in_memory import base_of, decoder_linears, holds_numbers, wrap_model
from gapinit.backbones.weights_fingerprint import Comparison, model_fingerprint
from gapinit.errors import GapinitError
from gapinit.gap.options import check_choice

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.gap.gap_vectors import GapVectors

Coordinates = Literal["layer", "module"]


class Linear(NamedTuple):
    """A linear module of a decoder layer, with an adapter or without."""

    name: str
    """In the plain model."""
    layer: int
    module: Any
    """PEFT's layer if the module has an adapter; Any, because PEFT's stubs lack its matrices."""
    dtype: torch.dtype
    """dtype of the model's hidden states."""


def alignment(
    peft_model: Any,
    gap: GapVectors,
    *,
    adapter_name: str = "default",
    coordinates: Coordinates = "layer",
) -> dict[str, float]:
    """Return the cosine of B's first column to the direction of each module, by module name.

    The direction is that of `initialize_lora_gap_weights`. The cosine of a zero column (standard
    LoRA at step 0) is given as 0. Raises GapinitError for an unsuitable model or gap, as that
    function does.
    """
    check_choice("coordinates", coordinates, Coordinates)
    modules, _ = covered_modules(peft_model, gap, adapter_name)
    return column_cosines(modules, module_directions(modules, gap, coordinates), adapter_name)


@torch.no_grad()
def column_cosines(
    modules: Sequence[Linear], directions: Mapping[str, Tensor], adapter_name: str
) -> dict[str, float]:
    """Return the cosine of B's first column to each module's direction, by module name."""
    cosines = {}
    for one in modules:
        cosine = column_cosine(one.module.lora_B[adapter_name].weight[:, 0], directions[one.name])
        cosines[one.name] = max(-1.0, min(1.0, cosine))
    return cosines


def column_cosine(column: Tensor, direction: Tensor) -> float:
    """Return the cosine of a column of B to a unit direction; 0 for a column of zeros."""
    wide = column.to("cpu", torch.float64)
    norm = torch.linalg.vector_norm(wide)
    return (wide @ direction / norm).item() if norm > 0 else 0.0


def decoder_modules(backbone: Backbone, adapter_name: str = ADAPTER) -> list[Linear]:
    """Return an adapter's LoRA modules inside the decoder layers, in the model's order."""
    dtype = backbone.model.dtype
    return [
        Linear(name, linear.layer, linear.module, dtype)
        for name, linear in decoder_linears(backbone).items()
        if isinstance(linear.module, LoraLayer) and adapter_name in linear.module.lora_A
    ]


def covered_modules(
    peft_model: Any, gap: GapVectors, adapter_name: str
) -> tuple[list[Linear], Comparison]:
    """Return an adapter's LoRA modules in the model's order, and the comparison of the weights.

    Raises GapinitError if there are none, if the gap belongs to another model, or if a module is
    outside the decoder or in a layer that the gap does not cover.
    """
    backbone = wrap_model(peft_model)
    every = lora_layers(peft_model, adapter_name)
    comparison = _require_same_model(backbone, gap)
    modules = decoder_modules(backbone, adapter_name)
    outside = every.keys() - {one.name for one in modules}
    if outside:
        raise GapinitError(
            f"adapter '{adapter_name}' has LoRA outside the language model's decoder layers, where "
            f"no gap is measured: {_some(sorted(outside))}. Target the decoder alone, for example "
            "with target_modules=gapinit.target_modules(model, layers)."
        )
    uncovered = [one.name for one in modules if one.layer not in gap.layers]
    if uncovered:
        raise GapinitError(
            f"the gap covers the decoder layers {', '.join(map(str, gap.layers))}, but adapter "
            f"'{adapter_name}' has LoRA in others: {_some(uncovered)}. Estimate the gap of those "
            "layers too, or leave them out."
        )
    return modules, comparison


def _require_same_model(backbone: Backbone, gap: GapVectors) -> Comparison:
    for what, measured, found in (
        ("vectors of width", gap.width, backbone.hidden_size),
        ("decoder layers:", gap.num_layers, backbone.num_layers),
    ):
        if measured != found:
            raise GapinitError(
                f"gap: it was measured on another model than this one ({what} {measured}, this "
                f"model has {found})"
            )
    if gap.fingerprint is None:
        return Comparison(None, 0, 0)
    comparison = model_fingerprint(backbone.model).compare(gap.fingerprint)
    if comparison.difference is not None:
        raise GapinitError(
            f"gap: it was measured on another model than this one ({comparison.difference}). "
            "Estimate it on this model, before anything changes its weights."
        )
    return comparison


def module_directions(
    modules: Sequence[Linear],
    gap: GapVectors,
    coordinates: Coordinates = "layer",
    vectors: Mapping[int | str, Tensor] | None = None,
    *,
    untrained: bool = False,
) -> dict[str, Tensor]:
    """Return each module's unit direction, (d_out,) float64 in main memory, by module name.

    "layer": a module that writes into the hidden space (d_out = d) takes its layer's gap g, any
    other takes W0 g, the image of the gap under its own frozen matrix. "module": the gap measured
    at the module's own output. `vectors` replace those of the gap, by layer or by module.
    `untrained`: W0 is the base weight plus the adapter's part, because PiSSA moves weight from one
    to the other. GapinitError names a module without such a direction.
    """
    directions = {}
    for one in modules:
        key = one.layer if coordinates == "layer" else one.name
        vector = raw_vector(gap, key) if vectors is None else vectors[key]
        d_out = one.module.out_features
        if coordinates == "layer" and d_out != gap.width:
            vector = _image(one, vector, untrained)
        if len(vector) != d_out:
            raise GapinitError(
                f"{one.name}: its output has width {d_out}, but the gap there {len(vector)}"
            )
        directions[one.name] = unit(vector, one.name)
    return directions


def raw_vector(gap: GapVectors, key: int | str) -> Tensor:
    """Return the gap of a layer or of a module, not normalised; GapinitError if it is zero."""
    if isinstance(key, int):
        vector, origin = gap.vector(key), f"gap of decoder layer {key}"
    elif key in gap.modules:
        vector, origin = gap.modules[key].vector, f"gap at the output of {key}"
    else:
        raise GapinitError(
            f"{key}: no gap was measured at its output. Gap files of the workflow and models that "
            "read images by cross-attention have none there. Use coordinates='layer'."
        )
    unit(vector, origin)
    return vector.to("cpu", torch.float64)


def unit(vector: Tensor, name: str) -> Tensor:
    """Return a vector divided by its norm; a zero or non-finite one is an error that names it."""
    norm = torch.linalg.vector_norm(vector)
    if not torch.isfinite(norm) or norm == 0:
        raise GapinitError(f"{name}: the direction has norm {norm.item()}, expected above 0")
    return vector / norm


@torch.no_grad()
def base_weight(module: Any, name: str) -> Tensor:
    """Return W0 as (d_out, d_in) floating-point numbers, dequantised where it is quantised."""
    base = base_of(module)
    kind = get_bnb_param_type(base.weight) if hasattr(base, "weight") else False
    try:
        # PEFT's helper for modules loses the scales of an 8-bit module in main memory.
        if kind:
            state = base.state if kind == "8bit" else None
            weight = dequantize_bnb_weight(base.weight, state=state)
        else:
            weight = cast(Tensor, dequantize_module_weight(base))
    except (AttributeError, TypeError, ImportError) as error:
        raise _unreadable(base, name, error) from None
    turned: Tensor = transpose(weight.detach(), getattr(module, "fan_in_fan_out", False))
    return turned


@torch.no_grad()
def _image(one: Linear, vector: Tensor, untrained: bool) -> Tensor:
    """Return W0 g in float64, in main memory.

    A quantised module computes its output for g instead: quantisation formats differ, and
    bitsandbytes reorders a 4-bit weight after the first pass on a CPU.
    """
    # ASSUME: the paper does not give the direction of modules of another width (fc1, gate, up).
    if one.module.in_features != len(vector):
        raise GapinitError(
            f"{one.name}: input of width {one.module.in_features} and output of width "
            f"{one.module.out_features} cannot take a gap of width {len(vector)}. Leave this "
            "module out, or use coordinates='module'."
        )
    base = base_of(one.module)
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        raise GapinitError(
            f"{one.name}: its base weight is not in memory (offloaded). Load the model without "
            "offloading."
        )
    if not holds_numbers(weight):
        return _answer(one, base, vector)
    weight = base_weight(one.module, one.name)
    if untrained:
        weight = weight + one.module.get_delta_weight(ADAPTER).detach()
    return weight.to("cpu", torch.float64) @ vector


def _answer(one: Linear, base: Any, vector: Tensor) -> Tensor:
    """Return a linear module's output for a vector, without its bias."""
    tensors = [*base.parameters(), *base.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    # Scaled to the length of hidden states, where half precision and 8-bit products are accurate.
    scale = len(vector) ** 0.5 / torch.linalg.vector_norm(vector)
    states = (vector * scale).to(device, one.dtype)[None, None]
    try:
        output = base.forward(states)[0, 0]  # without hooks
    except (AttributeError, TypeError, ValueError, RuntimeError, ImportError) as error:
        raise _unreadable(base, one.name, error) from None
    bias = getattr(base, "bias", None)
    image: Tensor = output.cpu().double()
    return image if bias is None else image - bias.detach().cpu().double()


def _unreadable(base: Any, name: str, error: Exception) -> GapinitError:
    return GapinitError(
        f"{name}: the weight of {type(base).__name__} cannot be read ({error}). Leave this module "
        "out, or use coordinates='module'."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def gap_share(
    backbone: Backbone, layers: Sequence[int], batch: Mapping[str, Any], gap: GapVectors
) -> float:
    """Return the mean over target weights of |u^T G|^2 / |G|^2, the gradient's share along u.

    With A = 0 the first gradient of A is (alpha / r) u^T G, so an adapter along the unit gap u
    receives this share of the squared gradient; for a random u its mean is 1 / d_out (paper,
    Proposition 3.1). Measured on the backbone without an adapter, so equal for all methods.
    """
    linears = decoder_linears(backbone)
    targets = [
        Linear(name, linears[name].layer, module, backbone.model.dtype)
        for name, module in backbone.named_targets(layers).items()
    ]
    directions = module_directions(targets, gap)

    def share(name: str, gradient: Tensor) -> float:
        matrix = gradient.to("cpu", torch.float64)
        total = matrix.square().sum().item()
        # The share of a zero gradient is 0.
        return (directions[name] @ matrix).square().sum().item() / total if total > 0 else 0.0

    shares = over_gradients(backbone, layers, batch, share)
    return sum(shares.values()) / len(shares)

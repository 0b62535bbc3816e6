"""LoRA adapters on a backbone, through PEFT: add, point, measure.

With dW = (alpha / r) B A, a direction is a column of B: where in its output space a module may
write. Methods of `gapinit.config.methods` choose it; this module knows PEFT's layout.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from gapinit.backbones.gradients import over_gradients
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

ADAPTER = "default"
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def add_lora(
    backbone: Backbone,
    layers: Sequence[int],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    init_lora_weights: bool | str,
    prepare: Callable[[LoraConfig], None] | None = None,
    vision: bool = False,
    **options: Any,
) -> PeftModel:
    """Put LoRA on the attention and MLP matrices of the given decoder layers.

    `vision`: and of the vision tower.

    `prepare` is called with PEFT's configuration before there is an adapter: some initialisers
    measure the bare model first. `options` go into that configuration.
    """
    given: dict[str, Any] = {"lora_alpha": alpha, "init_lora_weights": init_lora_weights}
    config = LoraConfig(
        r=rank,
        lora_dropout=dropout,
        target_modules=backbone.target_modules(layers, vision=vision),
        **given,
        **options,
    )
    if prepare is not None:
        prepare(config)
    with no_idle_warnings():
        return get_peft_model(backbone.model, config)


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """Return the adapted modules by name, in the model's order."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_B
    }
    if not found:
        raise GapinitError(f"the model has no LoRA layer of an adapter named '{ADAPTER}'")
    return found


def module_directions(
    model: PeftModel, gap: Tensor, only: Container[str] | None = None
) -> dict[str, Tensor]:
    """Return each adapted module's unit direction, (d_out,), from its layer's gap vector.

    `only`: names in the bare model; modules that are not among them have no direction.

    A module that writes into the hidden space (d_out = d) takes g itself; any other takes
    W0 g, the image of the gap under the module's own frozen matrix.

    `gap`: (L, d), one row for each decoder layer. Call it before training: W0 is then the base
    weight plus the adapter's part, which PiSSA has moved from the one to the other.
    """
    directions = {}
    for name, module in lora_layers(model).items():
        if only is not None and in_base(name) not in only:
            continue
        base = module.get_base_layer().weight.detach()
        weight = base + module.get_delta_weight(ADAPTER).detach()
        directions[name] = gap_direction(gap[layer_of(name)], weight, name)
    return directions


def gap_direction(gap: Tensor, weight: Tensor, name: str) -> Tensor:
    """Return one module's unit direction, (d_out,) float64, from its layer's gap and its W0."""
    vector = gap.to(torch.float64)
    d_out, d_in = weight.shape
    # ASSUME: the paper does not say what modules of another width (fc1, gate, up) take.
    if d_out != len(vector):
        if d_in != len(vector):
            raise GapinitError(
                f"{name}: output of width {d_out} and input of width {d_in} cannot take a gap "
                f"of width {len(vector)}"
            )
        vector = weight.detach().to("cpu", torch.float64) @ vector
    return unit(vector, name)


def unit(vector: Tensor, name: str) -> Tensor:
    """Return a vector divided by its norm; a zero or non-finite one is an error that names it."""
    norm = torch.linalg.vector_norm(vector)
    if not torch.isfinite(norm) or norm == 0:
        raise GapinitError(f"{name}: the direction has norm {norm.item()}, so it points nowhere")
    return vector / norm


@torch.no_grad()
def point(model: PeftModel, directions: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Set A = 0 and the first column of B to each module's direction, in place.

    dW = 0 at step 0, and the first gradient of A is B^T (dL/dh) x^T: the gradient seen along the
    direction alone (paper, Section 4.3). Further columns (r > 1) are random unit vectors.
    """
    for name, module in lora_layers(model).items():
        weight_a, weight_b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        if not weight_a.requires_grad:
            raise GapinitError(
                f"{name}: A is frozen, as LoRA-FA does it, and A = 0 here: B A would stay zero for "
                "ever. Train A, or use another initialisation."
            )
        columns = torch.randn(weight_b.shape, generator=generator, dtype=torch.float64)
        columns /= torch.linalg.vector_norm(columns, dim=0, keepdim=True)
        columns[:, 0] = directions[name]
        weight_a.zero_()
        weight_b.copy_(columns.to(weight_b))


def alignment(model: PeftModel, directions: Mapping[str, Tensor]) -> list[float]:
    """Return the cosine of B's first column to each module's direction, in the model's order.

    Modules without a direction, those of the vision tower, are left out. A zero column (standard
    LoRA at step 0) has no direction: its cosine is given as 0.
    """
    return column_cosines(directed_layers(model, directions), directions)


def directed_layers(model: PeftModel, directions: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the adapted modules that have a direction, in the model's order."""
    return {name: it for name, it in lora_layers(model).items() if name in directions}


@torch.no_grad()
def column_cosines(
    layers: Mapping[str, LoraLayer], directions: Mapping[str, Tensor]
) -> list[float]:
    """Return what `alignment` returns, for modules that are already looked up."""
    cosines = []
    for name, module in layers.items():
        weight = cast(Tensor, module.lora_B[ADAPTER].weight)
        column = weight[:, 0].to("cpu", torch.float64)
        norm = torch.linalg.vector_norm(column)
        cosines.append((column @ directions[name] / norm).item() if norm > 0 else 0.0)
    return cosines


def gap_share(
    backbone: Backbone, layers: Sequence[int], batch: Mapping[str, Any], gap: Tensor
) -> float:
    """Return the mean over target weights of their gradient's share along the gap.

    `gap`: (L, d). Of the backbone as it is, so that it is one number for a batch, whatever the
    method.
    """
    modules = backbone.named_targets(layers)

    def share(name: str, gradient: Tensor) -> float:
        direction = gap_direction(gap[layer_of(name)], modules[name].weight, name)
        return gradient_share(gradient, direction)

    shares = over_gradients(backbone, layers, batch, share)
    return sum(shares.values()) / len(shares)


def gradient_share(gradient: Tensor, direction: Tensor) -> float:
    """Return |u^T G|^2 / |G|^2, the share of a gradient that a column u of B sees.

    With A = 0 the first gradient of A is (alpha / r) u^T G, so this is what an adapter along u
    gets of the squared gradient; for a random u its mean is 1 / d_out (paper, Proposition 3.1).
    """
    matrix = gradient.to("cpu", torch.float64)
    total = matrix.square().sum().item()
    # A weight without gradient has none along u either.
    return (direction @ matrix).square().sum().item() / total if total > 0 else 0.0


def freeze_b(model: PeftModel) -> None:
    """Leave B as it is from now on: only A is trained."""
    for module in lora_layers(model).values():
        module.lora_B[ADAPTER].weight.requires_grad_(False)


def in_base(name: str) -> str:
    """Return the name in the bare model of a module that PEFT has wrapped."""
    return name.removeprefix("base_model.model.")


def layer_of(name: str) -> int:
    """Return the decoder layer that a module's full name stands for."""
    match = _LAYER.search(name)
    if match is None:
        raise GapinitError(f"{name}: not inside a decoder layer")
    return int(match[1])


@contextmanager
def no_idle_warnings() -> Iterator[None]:
    """Silence the warnings of PEFT about which a user can do nothing."""
    with warnings.catch_warnings():
        # It asks transformers for a property under its old name ...
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        # ... and advises EVA to save memory that the adapters here do not take.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with")
        yield

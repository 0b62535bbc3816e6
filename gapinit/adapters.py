"""LoRA adapters on a backbone, through PEFT: add, point, measure, save.

With dW = (alpha / r) B A, a direction is a column of B: where in its output space a module may
write. Methods of `gapinit.methods` choose it; this module knows PEFT's layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from gapinit.artifacts import atomic_folder
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.blip2 import Blip2Backbone

ADAPTER = "default"
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def add_lora(
    backbone: Blip2Backbone,
    layers: Sequence[int],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    init_lora_weights: bool | str,
) -> PeftModel:
    """Put LoRA on the attention and MLP matrices of the given decoder layers."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=backbone.target_modules(layers),
        init_lora_weights=init_lora_weights,
    )
    return get_peft_model(backbone.model, config)


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Return the adapted modules by name, in the model's order."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_B
    }
    if not found:
        raise GapinitError(f"the model has no LoRA layer of an adapter named '{ADAPTER}'")
    return found


def module_directions(model: PeftModel, gap: Tensor) -> dict[str, Tensor]:
    """Return each adapted module's unit direction, (d_out,), from its layer's gap vector.

    A module that writes into the hidden space (d_out = d) takes g itself; any other takes
    W0 g, the image of the gap under the module's own frozen matrix.

    `gap`: (L, d), one row for each decoder layer.
    """
    directions = {}
    for name, module in lora_layers(model).items():
        vector = gap[layer_of(name)].to(torch.float64)
        weight = module.get_base_layer().weight.detach().to("cpu", torch.float64)
        d_out, d_in = weight.shape
        # ASSUME: the paper does not say what modules of another width (fc1, gate, up) take.
        if d_out != len(vector):
            if d_in != len(vector):
                raise GapinitError(
                    f"{name}: output of width {d_out} and input of width {d_in} cannot take a gap "
                    f"of width {len(vector)}"
                )
            vector = weight @ vector
        directions[name] = unit(vector, name)
    return directions


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
        columns = torch.randn(weight_b.shape, generator=generator, dtype=torch.float64)
        columns /= torch.linalg.vector_norm(columns, dim=0, keepdim=True)
        columns[:, 0] = directions[name]
        weight_a.zero_()
        weight_b.copy_(columns.to(weight_b))


@torch.no_grad()
def alignment(model: PeftModel, directions: Mapping[str, Tensor]) -> list[float]:
    """Return the cosine of B's first column to each module's direction, in the model's order.

    A zero column (standard LoRA at step 0) has no direction: its cosine is given as 0.
    """
    cosines = []
    for name, module in lora_layers(model).items():
        column = module.lora_B[ADAPTER].weight[:, 0].to("cpu", torch.float64)
        norm = torch.linalg.vector_norm(column)
        cosines.append((column @ directions[name] / norm).item() if norm > 0 else 0.0)
    return cosines


def layer_of(name: str) -> int:
    """Return the decoder layer that a module's full name stands for."""
    match = _LAYER.search(name)
    if match is None:
        raise GapinitError(f"{name}: not inside a decoder layer")
    return int(match[1])


def save_adapter(model: PeftModel, output: Path, converted_from: Path | None = None) -> None:
    """Write a PEFT adapter folder that stock `PeftModel.from_pretrained` loads on the base.

    `converted_from`: for methods that change the base weights (PiSSA), the adapter as it was
    before training; PEFT then writes the difference as a LoRA of twice the rank, which works on
    the untouched base.
    """
    # The saved weights are all that counts: a plain initialisation makes any PEFT load them.
    model.peft_config[ADAPTER].init_lora_weights = True
    extra = {} if converted_from is None else {
        "path_initial_model_for_weight_conversion": str(converted_from)
    }
    with atomic_folder(output) as folder:
        model.save_pretrained(folder, save_embedding_layers=False, **extra)
        (folder / "README.md").unlink(missing_ok=True)

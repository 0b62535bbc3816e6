"""LoRA adapters on a backbone, through PEFT: add, point, measure, save.

With dW = (alpha / r) B A, a direction is a column of B: where in its output space a module may
write. Methods of `gapinit.methods` choose it; this module knows PEFT's layout.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gapinit.artifacts import atomic_folder, read_json
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
    options: dict[str, Any] = {"lora_alpha": alpha, "init_lora_weights": init_lora_weights}
    config = LoraConfig(
        r=rank,
        lora_dropout=dropout,
        target_modules=backbone.target_modules(layers),
        **options,
    )
    with _no_deprecation_warnings():
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


def module_directions(model: PeftModel, gap: Tensor) -> dict[str, Tensor]:
    """Return each adapted module's unit direction, (d_out,), from its layer's gap vector.

    A module that writes into the hidden space (d_out = d) takes g itself; any other takes
    W0 g, the image of the gap under the module's own frozen matrix.

    `gap`: (L, d), one row for each decoder layer. Call it before training: W0 is then the base
    weight plus the adapter's part, which PiSSA has moved from the one to the other.
    """
    directions = {}
    for name, module in lora_layers(model).items():
        vector = gap[layer_of(name)].to(torch.float64)
        base = module.get_base_layer().weight.detach()
        weight = (base + module.get_delta_weight(ADAPTER).detach()).to("cpu", torch.float64)
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


def alignment(model: PeftModel, directions: Mapping[str, Tensor]) -> list[float]:
    """Return the cosine of B's first column to each module's direction, in the model's order.

    A zero column (standard LoRA at step 0) has no direction: its cosine is given as 0.
    """
    return column_cosines(lora_layers(model), directions)


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
    config: Any = model.peft_config[ADAPTER]
    config.init_lora_weights = True
    initial = None if converted_from is None else str(converted_from)
    with atomic_folder(output) as folder:
        model.save_pretrained(
            str(folder),
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=initial,
        )
        (folder / "README.md").unlink(missing_ok=True)


def load_adapter(backbone: Blip2Backbone, folder: Path) -> PeftModel:
    """Put a saved adapter on the backbone's model.

    Raises GapinitError for a folder without an adapter, or with one that does not fit this
    backbone: PEFT would only warn, and the captions would be those of the untrained model.
    """
    folder = Path(folder)
    _require_fit(backbone, folder)
    try:
        with _no_deprecation_warnings():
            return PeftModel.from_pretrained(backbone.model, folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise GapinitError(f"{folder}: this adapter cannot be loaded ({reason})") from None


def _require_fit(backbone: Blip2Backbone, folder: Path) -> None:
    """Compare the names and the shapes of the saved matrices with the backbone's modules."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise GapinitError(f"{weights}: no such file (expected a PEFT adapter folder)")
    rank = read_json(folder / "adapter_config.json").get("r")
    modules = dict(backbone.model.named_modules())
    try:
        with safe_open(weights, "pt") as saved:
            shapes = {name: list(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise GapinitError(f"{weights}: damaged ({error}). Train the run again.") from None
    for name, shape in shapes.items():
        module_name, _, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
        weight = getattr(modules.get(module_name), "weight", None)
        if weight is None:
            raise GapinitError(
                f"{folder}: adapts '{module_name}', which this backbone does not have. It was "
                "made for another backbone."
            )
        d_out, d_in = weight.shape
        expected = [rank, d_in] if matrix == "A.weight" else [d_out, rank]
        if shape != expected:
            raise GapinitError(
                f"{folder}: '{name}' has shape {shape}, but this backbone needs {expected}. It "
                "was made for another backbone."
            )


@contextmanager
def _no_deprecation_warnings() -> Iterator[None]:
    # PEFT asks transformers for a property under its old name; a user can do nothing about it.
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield

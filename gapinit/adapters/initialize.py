"""`gapinit.initialize_lora_gap_weights`: Gap-Init on a PEFT model that is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gapinit.adapters.directions import (
    Coordinates,
    Linear,
    base_weight,
    column_cosines,
    covered_modules,
    module_directions,
    raw_vector,
    unit,
)
from gapinit.adapters.lora import ADAPTER
from gapinit.backbones.in_memory import base_of
from gapinit.config.runs import NoiseScale
from gapinit.errors import GapinitError
from gapinit.gap.options import check_amount, check_choice

if TYPE_CHECKING:
    from gapinit.gap.gap_vectors import GapVectors


@dataclass(frozen=True)
class InitializedModule:
    """The initial state of one LoRA module."""

    name: str
    """In the plain model."""
    layer: int
    cosine: float
    """Cosine of B's first column, as stored, to the module's direction without noise."""
    noise_cosine: float
    """Cosine of the noisy direction to the clean one, before storage; 1 without noise."""


@dataclass(frozen=True)
class GapReport:
    """The result of `initialize_lora_gap_weights`; prints as one line per decoder layer."""

    adapter_name: str
    coordinates: str
    noise: float
    noise_cosine: float
    """Mean cosine of the noisy gaps to the clean ones, over layers or modules."""
    modules: tuple[InitializedModule, ...]
    weights_compared: int
    """Number of weights that were compared with the fingerprint of the gap's model."""
    weights_skipped: int
    """Number of weights that were not compared: quantised, not in memory, or not in the gap."""

    def __str__(self) -> str:
        """Return a table: for each layer how many modules, and their smallest cosines."""
        lines = [
            f"adapter '{self.adapter_name}': A = 0, first column of B along the gap "
            f"(coordinates: {self.coordinates}, noise: {self.noise:g})",
            f"{'layer':>5}  {'modules':>7}  {'cosine':>7}  {'noise cosine':>12}",
        ]
        for layer in sorted({module.layer for module in self.modules}):
            group = [module for module in self.modules if module.layer == layer]
            cosine = min(module.cosine for module in group)
            noise_cosine = min(module.noise_cosine for module in group)
            lines.append(f"{layer:>5}  {len(group):>7}  {cosine:>7.4f}  {noise_cosine:>12.4f}")
        if self.weights_skipped or not self.weights_compared:
            lines.append(
                f"{self.weights_skipped} of {self.weights_compared + self.weights_skipped} weights "
                "(quantised, not in memory or unknown to the gap) were not compared with the gap's"
            )
        return "\n".join(lines)


def initialize_lora_gap_weights(
    peft_model: Any,
    gap: GapVectors,
    *,
    adapter_name: str = "default",
    coordinates: Coordinates = "layer",
    noise: float = 0.0,
    noise_scale: NoiseScale = "unit",
    generator: torch.Generator | None = None,
) -> GapReport:
    """Set A = 0 and the first column of B to the unit gap of each module's layer, in place.

    dW = (alpha / r) B A is exactly 0 at step 0, so the outputs equal those of the plain model, and
    the first gradient of A is B^T (dL/dh) x^T: the part of the gradient along the gap. Further
    columns (r > 1) are random unit vectors. dtype and device of A and B do not change.

    `gap`: from `estimate_gap` on this model. `coordinates`: "layer" (the paper's): a module whose
    output is as wide as the hidden states takes g, any other takes normalize(W0 g); "module": the
    gap measured at the module's own output. `noise` = epsilon >= 0 rotates the gap:

        g' = normalize(g / |g| + epsilon eta / sqrt(d)), eta ~ N(0, I)      `noise_scale`: "unit"
        g' = normalize(g + epsilon eta)                                     "raw", as printed

    The expected cosine to g is 1 / sqrt(1 + epsilon^2) with "unit" and depends on |g| with "raw";
    the report has the actual one. `generator` (default: torch's) draws in float64: eta, (L, d) for
    all decoder layers or (d_out,) for each module; then all columns of B, (d_out, r), for each
    module in the model's order.

    On an error no module is changed. Raises GapinitError for a model without LoRA, an unknown
    adapter, the gap of another model, a zero gap, a module outside the layers that the gap covers,
    an adapter whose A is frozen (LoRA-FA), and an initialisation that changes the base weights
    (PiSSA, OLoRA, LoftQ, ...).

    Source: Zhao et al., "When Is Rank-1 Enough?", Algorithm 1, section 4.3; noise: Appendix E.
    """
    check_choice("coordinates", coordinates, Coordinates)
    check_choice("noise_scale", noise_scale, NoiseScale)
    check_amount("noise", noise)
    modules, comparison = covered_modules(peft_model, gap, adapter_name)
    _require_plain_start(peft_model, adapter_name)
    clean = pointed = module_directions(modules, gap, coordinates)
    noise_cosine = 1.0
    if noise > 0:
        noisy, noise_cosine = _with_noise(modules, gap, coordinates, noise, noise_scale, generator)
        pointed = module_directions(modules, gap, coordinates, noisy)
    point({one.name: one.module for one in modules}, pointed, generator, adapter_name)
    cosines = column_cosines(modules, clean, adapter_name)
    return GapReport(
        adapter_name,
        coordinates,
        float(noise),
        noise_cosine,
        tuple(
            InitializedModule(
                one.name,
                one.layer,
                cosines[one.name],
                1.0 if noise == 0 else (pointed[one.name] @ clean[one.name]).item(),
            )
            for one in modules
        ),
        comparison.compared,
        comparison.skipped,
    )


def point(
    layers: Mapping[str, Any],
    directions: Mapping[str, Tensor],
    generator: torch.Generator | None,
    adapter_name: str = ADAPTER,
) -> None:
    """Set A = 0 and the first column of B to each LoRA module's direction, in place.

    Further columns are random unit vectors. On an error no module is changed.
    """
    _require_trainable(layers, adapter_name)
    magnitudes = {name: _magnitude(name, lora, adapter_name) for name, lora in layers.items()}
    devices = {name: _device(name, lora, adapter_name) for name, lora in layers.items()}
    for name, lora in layers.items():
        _materialise(lora, adapter_name, devices[name])
        _write(lora, adapter_name, directions[name], magnitudes[name], generator)


def _require_plain_start(peft_model: Any, adapter_name: str) -> None:
    config = getattr(peft_model, "peft_config", {}).get(adapter_name)
    start = getattr(config, "init_lora_weights", True)
    # PEFT's other initialisers move part of W0 into the adapter, or must be named to load.
    if not isinstance(start, bool) and start != "gaussian":
        raise GapinitError(
            f"adapter '{adapter_name}' was made with init_lora_weights={start!r}, which belongs to "
            "another method. Make it with init_lora_weights=True (PEFT's default)."
        )


def _require_trainable(layers: Mapping[str, Any], adapter_name: str) -> None:
    """Raise GapinitError for a LoRA module whose A would stay zero."""
    for name, lora in layers.items():
        if not lora.lora_A[adapter_name].weight.requires_grad:
            raise GapinitError(
                f"{name}: A of adapter '{adapter_name}' is frozen. Gap-Init starts from A = 0, so "
                "dW would stay 0. LoRA-FA: train A too. If the adapter is not the active one, call "
                f"set_adapter('{adapter_name}') first; if it was loaded, load it with "
                "is_trainable=True."
            )


def _with_noise(
    modules: Sequence[Linear],
    gap: GapVectors,
    coordinates: Coordinates,
    noise: float,
    scale: NoiseScale,
    generator: torch.Generator | None,
) -> tuple[dict[int | str, Tensor], float]:
    """Return g' by layer or by module, and the mean of its cosines to g."""
    eta: dict[int | str, Tensor]
    if coordinates == "layer":
        drawn = _normal((gap.num_layers, gap.width), generator)
        eta = {layer: drawn[layer] for layer in sorted({one.layer for one in modules})}
    else:
        eta = {one.name: _normal((one.module.out_features,), generator) for one in modules}
    noisy, cosines = {}, []
    for key, drawn in eta.items():
        # ASSUME: the paper does not say whether g is normalised before the noise; we offer both.
        vector = raw_vector(gap, key)
        if scale == "unit":
            turned = unit(vector, str(key)) + noise * drawn / len(vector) ** 0.5
        else:
            turned = vector + noise * drawn
        noisy[key] = unit(turned, f"noisy gap of {key}")
        cosines.append(torch.cosine_similarity(noisy[key], vector, dim=0))
    return noisy, torch.stack(cosines).mean().item()


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    return torch.randn(shape, generator=generator, dtype=dtype, device=device).cpu().double()


@torch.no_grad()
def _magnitude(name: str, lora: Any, adapter_name: str) -> Tensor | None:
    """Return DoRA's magnitudes for dW = 0, |W0| of each row; None if the module needs no change."""
    vectors: Mapping[str, Any] = lora.lora_magnitude_vector
    if adapter_name not in vectors or not hasattr(vectors[adapter_name], "get_weight_norm"):
        return None
    weight_a, weight_b = (matrix[adapter_name].weight for matrix in (lora.lora_A, lora.lora_B))
    if not weight_a.is_meta and not (weight_a.any() and weight_b.any()):
        return None
    # As PEFT computes it, in the weight's dtype: it cancels exactly in the forward pass.
    weight = base_weight(lora, name)
    return torch.linalg.norm(weight, dim=1).to(weight.dtype)


@torch.no_grad()
def _write(
    lora: Any,
    adapter_name: str,
    direction: Tensor,
    magnitude: Tensor | None,
    generator: torch.Generator | None,
) -> None:
    lora_a, lora_b = lora.lora_A[adapter_name], lora.lora_B[adapter_name]
    columns = _normal(tuple(lora_b.weight.shape), generator)
    columns /= torch.linalg.vector_norm(columns, dim=0, keepdim=True)
    columns[:, 0] = direction
    lora_a.weight.zero_()
    lora_b.weight.copy_(columns)
    if lora_b.bias is not None:
        lora_b.bias.zero_()
    if magnitude is not None:
        lora.lora_magnitude_vector[adapter_name].weight.copy_(magnitude)


def _device(name: str, lora: Any, adapter_name: str) -> torch.device:
    """Return the adapter's device, or the base weight's if the adapter is not in memory."""
    weight: Tensor = lora.lora_A[adapter_name].weight
    if not weight.is_meta:
        return weight.device
    base = base_of(lora)
    for tensor in (*base.parameters(), *base.buffers()):
        if not tensor.is_meta:
            return torch.device(tensor.device)
    raise GapinitError(
        f"{name}: neither adapter nor base weight is in memory (offloaded). Load the model "
        "without offloading."
    )


def _materialise(lora: Any, adapter_name: str, device: torch.device) -> None:
    """Allocate the parameters that low_cpu_mem_usage left on the meta device."""
    for parts in (lora.lora_A, lora.lora_B, lora.lora_magnitude_vector):
        if adapter_name in parts:
            module: nn.Module = parts[adapter_name]
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta:
                    real = torch.zeros_like(parameter, device=device)
                    setattr(module, name, nn.Parameter(real, requires_grad=parameter.requires_grad))

"""The modality gap of a model in memory and on disk: what `gapinit.estimate_gap` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gapinit.artifacts.artifacts import atomic_file, package_versions
from gapinit.artifacts.digests import require_unaltered
from gapinit.backbones.weights_fingerprint import ModelFingerprint
from gapinit.errors import GapinitError
from gapinit.gap.gap_file import read_gap
from gapinit.gap.geometry import Spectrum
from gapinit.gap.layers import select_layers

if TYPE_CHECKING:
    from gapinit.gap.layers import LayerStrategy

FORMAT = "gapinit.gap_vectors"
FORMAT_VERSION = 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ModuleGap(NamedTuple):
    """The gap at one linear module's own output."""

    layer: int
    vector: Tensor
    """(d_out,) float64: mean text minus mean vision output, not normalised."""


@dataclass(frozen=True, eq=False)
class GapVectors:
    """The modality gap of some decoder layers of one model, from N pairs.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.2 and Appendix C.
    """

    layers: tuple[int, ...]
    """The decoder layers that were measured, ascending; 0 is the lowest."""
    vectors: Tensor
    """(layers, d) float64: the gap of each, in the units of the states; not normalised."""
    spot_scores: Tensor
    """(layers,) float64: SPOT-Gap score of each."""
    spectrum: Spectrum
    """Singular values of the per-sample gaps, centred and not, (layers, min(N, d)) each."""
    num_layers: int
    """How many decoder layers the model has."""
    pairs: int
    pooling: str
    neighbours: int | None
    """Neighbourhood of the SPOT smoothing; None: `vectors` are plain means."""
    modules: Mapping[str, ModuleGap] = field(default_factory=dict)
    """Each linear module of these layers, by its name in the plain model."""
    model_type: str | None = None
    fingerprint: ModelFingerprint | None = None
    """Shape and samples of the model's weights; None: not known."""
    means: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a gap file: "text" and "vision", (layers, d) float64, the mean state of each modality."""
    heldout: Tensor | None = None
    """Of a gap file: (layers, d) float64, the plain gap of pairs that `vectors` is not made of."""
    backbone: str | None = None
    """Of a gap file: digest of the backbone's folder."""

    def __post_init__(self) -> None:
        for name in ("vectors", "spot_scores"):
            shape = tuple(getattr(self, name).shape)
            if shape[:1] != (len(self.layers),):
                raise GapinitError(
                    f"{name}: {len(self.layers)} layers were measured, found shape {shape}"
                )

    @property
    def width(self) -> int:
        """Return d, the width of the hidden states."""
        return int(self.vectors.shape[1])

    def vector(self, layer: int) -> Tensor:
        """Return the gap of one decoder layer, (d,); `GapinitError` if it was not measured."""
        if layer not in self.layers:
            raise GapinitError(
                f"decoder layer {layer}: the gap covers only layers "
                f"{', '.join(map(str, self.layers))}"
            )
        return self.vectors[self.layers.index(layer)]

    def select(
        self, k: int, strategy: LayerStrategy = "naive", *, exclude_bottom: int = 0
    ) -> list[int]:
        """Choose `k` of the measured layers to adapt, as ascending indices.

        "naive": the last k; "gg-safe": those with the highest SPOT-Gap score, without the
        decoder's `exclude_bottom` lowest layers; "all": every layer, whatever `k` is.

        Source: Zhao et al., section 4.4 and Appendix G.5.
        """
        excluded = sum(layer < exclude_bottom for layer in self.layers)
        chosen = select_layers(self.spot_scores.tolist(), strategy, k, excluded)
        return [self.layers[row] for row in chosen]

    def target_modules(self, layers: Sequence[int]) -> list[str]:
        """Return the attention and MLP matrices of these layers, for `LoraConfig(target_modules)`.

        Full names, so that PEFT adapts no module of the same name in a vision tower.
        """
        for layer in layers:
            self.vector(layer)
        if not self.modules:
            raise GapinitError(
                "this gap has no modules: gap files of the workflow and models that read images by "
                "cross-attention have none. Use gapinit.target_modules(model, layers)."
            )
        return [name for name, module in self.modules.items() if module.layer in layers]

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all.

        `means`, `heldout` and `backbone`, which only a gap file of the workflow has, are left out.
        """
        if self.fingerprint is None:
            raise GapinitError(
                f"{path}: this gap has no fingerprint of the weights that it was measured on, so "
                "that another model could not be told from this one. Estimate the gap again."
            )
        tensors = {
            "layers": torch.tensor(self.layers),
            "vectors": self.vectors,
            "spot_scores": self.spot_scores,
            "singular_values": torch.from_numpy(self.spectrum.singular_values),
            "singular_values_centred": torch.from_numpy(self.spectrum.singular_values_centred),
            "weight_samples": self.fingerprint.samples,
        }
        tensors |= {f"module.{name}": module.vector for name, module in self.modules.items()}
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "gapinit_version": package_versions(["gapinit"])["gapinit"],
            "num_layers": self.num_layers,
            "pairs": self.pairs,
            "pooling": self.pooling,
            "neighbours": self.neighbours,
            "model_type": self.model_type,
            "model_fingerprint": self.fingerprint.digest,
            "model_config": self.fingerprint.config,
            "weights": list(zip(self.fingerprint.names, self.fingerprint.sizes, strict=True)),
            "modules": [[name, module.layer] for name, module in self.modules.items()],
        }
        with atomic_file(Path(path)) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                {name: json.dumps(value) for name, value in metadata.items()},
            )

    @classmethod
    def load(cls, path: Path | str) -> GapVectors:
        """Read a file that `save` wrote, or a gap file (HDF5) of the workflow.

        `GapinitError` names a file that is missing, damaged or neither of the two.
        """
        path = Path(path)
        if not path.is_file():
            raise GapinitError(f"{path}: no such file (expected one that GapVectors.save wrote)")
        with path.open("rb") as start:
            if start.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return cls(**_of_gap_file(path))
        require_unaltered(path)
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata() or {}
                # Copies: a mapped file that another process shortens would end this one.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = {name: json.loads(value) for name, value in found.items()}
            return cls(**_of_saved_file(tensors, metadata))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, GapinitError) as error:
            raise GapinitError(
                f"{path}: not a whole file of GapVectors.save ({error}). Estimate the gap again."
            ) from None


def _of_gap_file(path: Path) -> dict[str, Any]:
    """Return the fields of a workflow's gap file, which holds every decoder layer."""
    found = read_gap(path)
    smoothed = found.inputs["smoothing"] == "spot"
    means = {"text": found.text_mean, "vision": found.vision_mean}
    return {
        "layers": tuple(range(len(found.gap))),
        "vectors": torch.from_numpy(found.gap),
        "spot_scores": torch.from_numpy(found.score),
        "spectrum": Spectrum(found.singular_values, found.singular_values_centred),
        "num_layers": len(found.gap),
        "pairs": found.inputs["size"],
        "pooling": found.inputs["states"][0]["inputs"].get("pooling", "mean"),
        "neighbours": found.inputs["neighbours"] if smoothed else None,
        "fingerprint": found.fingerprint and ModelFingerprint.from_json(found.fingerprint),
        "means": {name: torch.from_numpy(mean) for name, mean in means.items()},
        "heldout": None if found.heldout_gap is None else torch.from_numpy(found.heldout_gap),
        "backbone": found.inputs["backbone"],
    }


def _of_saved_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a file that `GapVectors.save` wrote."""
    for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        if metadata.get(name) != expected:
            raise ValueError(f"{name} {metadata.get(name)!r}, expected {expected!r}")
    names, sizes = zip(*metadata["weights"], strict=True)
    kept = ("num_layers", "pairs", "pooling", "neighbours", "model_type")
    return {name: metadata[name] for name in kept} | {
        "layers": tuple(tensors["layers"].tolist()),
        "vectors": tensors["vectors"],
        "spot_scores": tensors["spot_scores"],
        "spectrum": Spectrum(
            tensors["singular_values"].numpy(), tensors["singular_values_centred"].numpy()
        ),
        "modules": {
            name: ModuleGap(layer, tensors[f"module.{name}"]) for name, layer in metadata["modules"]
        },
        "fingerprint": ModelFingerprint(
            metadata["model_config"], names, sizes, tensors["weight_samples"]
        ),
    }

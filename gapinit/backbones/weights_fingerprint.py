"""What tells one model from another in memory: its shape, and a few entries of every weight.

A digest of the weights would change with their dtype, and a gap that was measured in half
precision serves a training in another. So sampled entries are kept as numbers and compared as far
as the coarser dtype can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gapinit.artifacts.artifacts import digest
from gapinit.backbones.in_memory import base_modules, base_of, holds_numbers

SAMPLES = 4
"""Entries of each weight that are kept."""
RELATIVE_TOLERANCE = 1.01 * 2.0**-8
"""Twice the rounding error of bfloat16, the coarsest dtype that weights are loaded in."""
ABSOLUTE_TOLERANCE = 1e-7
"""Twice the spacing of float16 near zero."""

CONFIG_KEYS = frozenset(
    {
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "ffn_dim",
        "patch_size",
        "num_query_tokens",
    }
)
"""Sizes that a checkpoint keeps however it is loaded. The vocabulary is not among them: adding
tokens to a model leaves its gap what it was."""


class Comparison(NamedTuple):
    """What a comparison of two fingerprints found."""

    difference: str | None
    """Where they differ, None if nowhere."""
    compared: int
    """How many weights were compared; 0: the configurations only."""
    skipped: int
    """How many could not be: quantised, or not in memory."""


@dataclass(frozen=True, eq=False)
class ModelFingerprint:
    """A model's shape and sampled weights."""

    config: str
    """SHA-256 of the configuration's sizes."""
    names: tuple[str, ...]
    """Names of the weights in the plain model."""
    sizes: tuple[int, ...]
    """Number of entries of each."""
    samples: Tensor
    """(weights, SAMPLES) float32; NaN where a weight is quantised or not in memory."""

    @property
    def digest(self) -> str:
        """Return a SHA-256 of all of it. Models that `compare` finds equal may differ in it."""
        return digest([self.config, self.names, self.sizes, self.samples.tolist()])

    def to_json(self) -> str:
        """Return all of it as text, for an HDF5 file."""
        return json.dumps([self.config, self.names, self.sizes, self.samples.tolist()])

    @classmethod
    def from_json(cls, text: str) -> ModelFingerprint:
        """Return what `to_json` wrote."""
        config, names, sizes, samples = json.loads(text)
        return cls(config, tuple(names), tuple(sizes), torch.tensor(samples))

    def compare(self, other: ModelFingerprint) -> Comparison:
        """Compare shape and weights; two dtypes of one checkpoint are the same model.

        Entries x and y agree if |x - y| is at most `RELATIVE_TOLERANCE` of the larger one. A
        weight that one side holds quantised is skipped.
        """
        if self.config != other.config:
            return Comparison("its configuration has other sizes", 0, 0)
        theirs = {name: row for row, name in enumerate(other.names)}
        rows = [
            (row, theirs[name])
            for row, name in enumerate(self.names)
            if name in theirs and self.sizes[row] == other.sizes[theirs[name]]
        ]
        ours_at, theirs_at = (torch.tensor([pair[side] for pair in rows]) for side in (0, 1))
        x, y = self.samples[ours_at.long()], other.samples[theirs_at.long()]
        known = (torch.isfinite(x) & torch.isfinite(y)).all(dim=1)
        allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * torch.maximum(x.abs(), y.abs())
        differs = known & ((x - y).abs() > allowed).any(dim=1)
        compared = int(known.sum())
        skipped = max(len(self.names), len(other.names)) - compared
        if differs.any():
            name = self.names[rows[int(differs.nonzero()[0])][0]]
            found = f"{int(differs.sum())} of its {compared} weights differ, for example '{name}'"
            return Comparison(found, compared, skipped)
        return Comparison(None, compared, skipped)


def model_fingerprint(model: Any) -> ModelFingerprint:
    """Return the fingerprint of a plain Hugging Face model, adapters in it not counted."""
    # Tokens may be added to a vocabulary, and its matrices are then others.
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    left_out = {id(base_of(module).weight) for module in embeddings if module is not None}
    names, sizes, samples = [], [], []
    for module_name, module in base_modules(model):
        for name, parameter in base_of(module).named_parameters(recurse=False):
            if id(parameter) not in left_out:
                names.append(f"{module_name}.{name}".lstrip("."))
                sizes.append(parameter.numel())
                samples.append(_sample(parameter))
    rows = torch.stack(samples) if samples else torch.empty(0, SAMPLES)
    return ModelFingerprint(config_digest(model.config), tuple(names), tuple(sizes), rows)


def config_digest(config: Any) -> str:
    """Return a SHA-256 of the sizes in a Hugging Face configuration and its parts."""
    return digest(_sizes(config.to_dict()))


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key in CONFIG_KEYS}
    for key, value in config.items():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, Mapping):
            found[key] = _sizes(value)
    return found


def _sample(parameter: nn.Parameter) -> Tensor:
    """Return entries at evenly spaced places as float32; NaN where there are no such numbers."""
    if not holds_numbers(parameter) or parameter.numel() == 0:
        return torch.full((SAMPLES,), float("nan"))
    odd = 2 * torch.arange(SAMPLES, device=parameter.device) + 1
    places = odd * parameter.numel() // (2 * SAMPLES)
    return parameter.detach().reshape(-1)[places].float().cpu()

"""A fingerprint of a model in memory: its shape and a few entries of every weight.

A checksum of the weights would depend on their dtype, but a gap measured in half precision is valid
for training in another dtype. So sampled entries are stored as numbers and compared with the
tolerance of the coarser dtype.
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
"""Number of sampled entries of each weight."""
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
"""Sizes that do not depend on how a checkpoint is loaded. The vocabulary is left out: adding tokens
does not change the gap."""


class Comparison(NamedTuple):
    """The result of comparing two fingerprints."""

    difference: str | None
    """What differs; None: nothing."""
    compared: int
    """How many weights were compared; 0: only the configurations."""
    skipped: int
    """How many weights are quantised or not in memory."""


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
        """Return its SHA-256. Models that `compare` finds equal may have different ones."""
        return digest([self.config, self.names, self.sizes, self.samples.tolist()])

    def to_json(self) -> str:
        """Return it as text for an HDF5 file."""
        return json.dumps([self.config, self.names, self.sizes, self.samples.tolist()])

    @classmethod
    def from_json(cls, text: str) -> ModelFingerprint:
        """Read the output of `to_json`."""
        config, names, sizes, samples = json.loads(text)
        return cls(config, tuple(names), tuple(sizes), torch.tensor(samples))

    def compare(self, other: ModelFingerprint) -> Comparison:
        """Compare shape and weights; one checkpoint in two dtypes is the same model.

        Entries x and y agree if |x - y| <= `ABSOLUTE_TOLERANCE` + `RELATIVE_TOLERANCE`
        max(|x|, |y|). A weight that is quantised on one side is skipped.
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
        difference = None
        if differs.any():
            name = self.names[rows[int(differs.nonzero()[0])][0]]
            count = int(differs.sum())
            difference = f"{count} of its {compared} weights differ, for example '{name}'"
        return Comparison(difference, compared, skipped)


def model_fingerprint(model: Any) -> ModelFingerprint:
    """Return the fingerprint of a plain Hugging Face model, without adapters in it."""
    # Adding tokens to the vocabulary replaces these matrices.
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
    config = digest(_sizes(model.config.to_dict()))
    return ModelFingerprint(config, tuple(names), tuple(sizes), rows)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes in a Hugging Face configuration and its nested parts."""
    found = {key: value for key, value in config.items() if key in CONFIG_KEYS}
    for key, value in config.items():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, Mapping):
            found[key] = _sizes(value)
    return found


def _sample(parameter: nn.Parameter) -> Tensor:
    """Return evenly spaced entries as float32; NaN where the weight cannot be read as numbers."""
    if not holds_numbers(parameter) or parameter.numel() == 0:
        return torch.full((SAMPLES,), float("nan"))
    odd = 2 * torch.arange(SAMPLES, device=parameter.device) + 1
    places = odd * parameter.numel() // (2 * SAMPLES)
    return parameter.detach().reshape(-1)[places].float().cpu()

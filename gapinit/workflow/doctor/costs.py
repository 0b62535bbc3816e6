"""Estimates of memory and arithmetic from the shapes of a backbone.

The memory of a stage is its weights, the activations that it keeps and its largest temporaries:

- forward: a decoder layer needs 4 hidden and 3 inner widths per token; the vision tower, which runs
  first, 6 hidden and 2 inner widths per patch. The larger of the two counts.
- states: the outputs of all layers, kept until they are pooled.
- train: for the gradient, 10 hidden and 4 inner widths per token and layer; float32 copies of the
  inputs of each adapter (two with dropout); logits of labelled positions in the model's dtype, in
  float32 and as gradients; for each adapter weight a gradient and two moments.
- predict: key-value caches of all beams, and the forward pass of the prompts.

The arithmetic is two operations per weight and token forward, and two more backward, since frozen
weights need no gradient. The products of queries, keys and values within attention are not
counted. A decoding step reads all weights once, so it takes at least their bytes divided by the
memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gapinit.backbones.facts import PHOTO, STATE_BYTES, Facts

FORWARD = (4, 3)
KEPT = (10, 4)
VISION = (6, 2)
ADAPTER_STATES = 4
"""Copies of an adapter's weights in training: weight, gradient, two moments."""
STEP_OVERHEAD_S = 0.03
"""ASSUME: seconds to launch one decoding step of about 30 layers, on any GPU."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one image and one text each."""

    sequences: int
    text_tokens: float
    """Tokens of a text with its template."""
    images: int | None = None
    """Different images in the batch; None: one per sequence."""
    size: tuple[int, int] = PHOTO

    def width(self, facts: Facts) -> float:
        """Return the tokens of a sequence."""
        return facts.prefix_tokens(self.size) + self.text_tokens

    def tokens(self, facts: Facts) -> float:
        """Return the tokens of all sequences."""
        return self.sequences * self.width(facts)


def forward_bytes(facts: Facts, batch: Batch, vision: bool = True) -> int:
    """Return the temporaries of a forward pass, without weights and kept activations."""
    hidden, inner = FORWARD
    widths = hidden * facts.hidden_size + inner * facts.mlp_width
    memory = batch.sequences * facts.memory_tokens(batch.size) * facts.hidden_size
    language = batch.tokens(facts) * widths + memory
    seen = 0.0
    if vision:
        images = batch.sequences if batch.images is None else batch.images
        (hidden, inner), (wide, deep) = VISION, facts.vision_width
        seen = images * facts.vision_patches(batch.size) * (hidden * wide + inner * deep)
    return round(max(language, seen) * facts.value_bytes)


def states_bytes(facts: Facts, batch: Batch) -> int:
    """Return the memory of the states stage."""
    kept = facts.num_layers * batch.tokens(facts) * facts.hidden_size * facts.value_bytes
    return facts.weights_bytes + round(kept) + forward_bytes(facts, batch)


def train_bytes(
    facts: Facts,
    batch: Batch,
    layers: Sequence[int],
    rank: int,
    labelled: float,
    dropout: bool = False,
) -> int:
    """Return the memory of training: the larger of loading the whole model and a training step.

    `labelled`: positions of a sequence that have a label.
    """
    value, first = facts.value_bytes, min(layers)
    hidden, inner = KEPT
    kept = 0.0
    for layer in range(first, facts.num_layers):
        kept += (hidden * facts.hidden_size + inner * facts.mlp_width) * value
        if layer in layers:
            kept += sum(it.d_in for it in facts.targets[layer]) * 4 * (2 if dropout else 1)
    logits = batch.sequences * labelled * facts.vocabulary * (2 * value + 2 * 4)
    inputs = batch.tokens(facts) * facts.hidden_size * STATE_BYTES
    inputs += batch.sequences * facts.memory_tokens(batch.size) * facts.hidden_size * STATE_BYTES
    adapter = facts.adapter(layers, rank) * ADAPTER_STATES * 4
    held = tail_parameters(facts, first) * value
    needed = held + kept * batch.tokens(facts) + logits + inputs + adapter
    return round(max(facts.weights_bytes, needed))


def tail_parameters(facts: Facts, first: int) -> int:
    """Return the number of weights in training: embeddings, layers from `first` up, output."""
    return facts.language_parameters - sum(facts.layer_parameters[:first])


def predict_bytes(facts: Facts, batch: Batch, beams: int, new_tokens: int) -> int:
    """Return the memory of decoding; every beam is a sequence from the first step."""
    wide = Batch(batch.sequences * beams, batch.text_tokens, batch.images, batch.size)
    length = round(batch.width(facts)) + new_tokens
    caches = wide.sequences * facts.kv_bytes(length, batch.size)
    logits = wide.sequences * facts.vocabulary * (facts.value_bytes + 3 * 4)
    return facts.weights_bytes + caches + logits + forward_bytes(facts, wide, vision=False)


def vision_flops(facts: Facts, size: tuple[int, int] = PHOTO) -> float:
    """Return the operations of the vision tower for one image."""
    return 2.0 * facts.vision_parameters * facts.vision_patches(size)


def forward_flops(facts: Facts, batch: Batch, layers: range, passes: int = 1) -> float:
    """Return the operations of some layers on a batch; `passes`: 2 with a backward pass."""
    weights = sum(facts.layer_parameters[layer] for layer in layers)
    work = weights * batch.tokens(facts)
    memory = facts.memory_tokens(batch.size)
    if memory:
        # Cross-attention computes keys and values from the image tokens.
        read = facts.kv_bytes(0, batch.size) / facts.value_bytes / facts.num_layers
        work += batch.sequences * read * facts.hidden_size * len(layers)
    return 2.0 * passes * work


def packed_flops(facts: Facts, batch: Batch, layers: range) -> float:
    """Return the operations of some layers if all texts of an image share one prefix."""
    alone = forward_flops(facts, batch, layers)
    again = batch.sequences - (batch.images or batch.sequences)
    weights = sum(facts.layer_parameters[layer] for layer in layers)
    return alone - 2.0 * weights * again * facts.prefix_tokens(batch.size)


def output_flops(facts: Facts, positions: float, passes: int = 1) -> float:
    """Return the operations of the output matrix."""
    return 2.0 * passes * facts.output_parameters * positions


def step_seconds(facts: Facts, sequences: int, flops: float, bandwidth: float) -> float:
    """Return the seconds of one decoding step: arithmetic, reading weights or launch."""
    work = 2.0 * facts.language_parameters * sequences / flops
    read = facts.language_parameters * facts.value_bytes / bandwidth
    return max(work, read, STEP_OVERHEAD_S)

"""Run a backbone's layers above the trunk on cached states, and compute their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gapinit.backbones.inputs import Inputs
from gapinit.backbones.last_layer import Rows
from gapinit.backbones.padding_free import FlatRows, Layout, Places, without_padding
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

# Without padding a step takes the same time at width 128, and is 1.07 times as fast at 256 and 1.09
# times at 512 (CPU, captions of COCO's lengths).
LEAST_WIDTH = 256


def batch_inputs(backbone: Backbone, batch: Mapping[str, Any]) -> Inputs:
    """Return the decoder's inputs for a batch of the trunk; token ids become embeddings.

    A batch with pixels has no states: the vision tower runs first.
    """
    if "pixels" in batch:
        return _seen_inputs(backbone, batch)
    names = ("states", "prefix_length", "length", "grid", "memory", "memory_length")
    inputs = Inputs(**{name: batch[name] for name in names if name in batch})
    return backbone.with_text(inputs, batch["input_ids"]) if "input_ids" in batch else inputs


def _seen_inputs(backbone: Backbone, batch: Mapping[str, Any]) -> Inputs:
    images = backbone.image_features(batch["pixels"]).take(batch["image"].cpu())
    spans = zip(*(batch[name].tolist() for name in ("prefix_length", "length")), strict=True)
    rows = zip(batch["input_ids"].tolist(), spans, strict=True)
    inputs = backbone.embed(images, [ids[start:end] for ids, (start, end) in rows])
    if inputs.prefix_length.tolist() != batch["prefix_length"].tolist():
        raise GapinitError(
            "the images have other numbers of tokens than when the trunk was written: run "
            "`gapinit trunk` again"
        )
    return inputs


def tail_loss(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy over the labelled positions (-100: no label).

    For the other positions the last layer computes only keys and values, and the output matrix
    nothing.
    """
    labels = batch["labels"]
    labelled = labels != -100
    states = decode_at(backbone, batch_inputs(backbone, batch), labelled)
    logits = backbone.output_head(states).float()
    return nn.functional.cross_entropy(logits, labels[labelled], reduction="none").mean()


def decode_at(backbone: Backbone, inputs: Inputs, where: Tensor) -> Tensor:
    """Return the final states at some positions, one after another, (positions, d).

    `where`: (n, width) bool. The states equal those of `Backbone.decode`. The last layer skips the
    other positions if the family defines `last_layer`; wide models skip padding in all layers.
    """
    narrow, layer = backbone.last_layer, backbone.decoder_layers[-1]
    attention = backbone.text_config._attn_implementation
    if narrow is None or attention not in ("sdpa", "eager"):
        return backbone.decode(inputs)[where]
    rows = Rows.of(where)
    if attention == "sdpa" and _padding_costs(backbone, inputs):
        position = torch.arange(where.shape[1], device=where.device)
        tokens = Layout.of(position < inputs.length[:, None])
        places = Places.of(where[tokens.valid])
        with narrow(layer, FlatRows(rows.position, rows.valid, rows.width, places), False):
            return _decode_flat(backbone, inputs, tokens, Layout.of(rows.valid))
    with narrow(layer, rows, attention == "eager"):
        states = backbone.decode(inputs)
    return states[rows.valid]


def _padding_costs(backbone: Backbone, inputs: Inputs) -> bool:
    """Return whether the batch has padding and computing it costs more than removing it."""
    return (
        not backbone.cross_attends
        and inputs.segment is None
        and backbone.hidden_size >= LEAST_WIDTH
        and bool((inputs.length < inputs.states.shape[1]).any())
    )


def _decode_flat(backbone: Backbone, inputs: Inputs, tokens: Layout, asked: Layout) -> Tensor:
    """Run the decoder on a batch without padding; return states at the rows asked for."""
    valid = tokens.valid
    arguments = {"position_ids": inputs.positions.expand(valid.shape)}
    arguments |= backbone.decoder_arguments(inputs)  # the masks are for padded sequences
    arguments["position_ids"] = arguments["position_ids"][..., valid].unsqueeze(-2)
    states = tokens.flat(inputs.states.to(backbone.model.dtype))
    with without_padding(backbone.text_config, tokens, asked):
        found = backbone.decoder(inputs_embeds=states, use_cache=False, **arguments)
    return found.last_hidden_state[0]

"""A backbone's layers above the trunk on cached states, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gapinit.backbones.inputs import Inputs
from gapinit.backbones.last_layer import Rows
from gapinit.backbones.padding_free import FlatRows, Layout, without_padding
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

# Spreading and taking back costs what padding saves at a width of 128; at 256 a step is 1.07 times
# as fast without padding, at 512 1.09 times (CPU, captions as COCO's).
LEAST_WIDTH = 256


def batch_inputs(backbone: Backbone, batch: Mapping[str, Any]) -> Inputs:
    """Return the decoder's inputs of a trunk's batch; token ids become embeddings.

    A batch without states has its images' pixels: then the vision tower runs, too.
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
            "the images have other numbers of tokens than when the trunk was made: run "
            "`gapinit trunk` again"
        )
    return inputs


def tail_states(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """Run the layers above the trunk: final states of image and text, (n, width, d)."""
    return backbone.decode(batch_inputs(backbone, batch))


def position_losses(
    backbone: Backbone, batch: Mapping[str, Any], *, padded: bool = False
) -> Tensor:
    """Return the cross-entropy of each labelled position (-100: none), (labelled,), row by row.

    Positions without a label never reach the output matrix, and the last layer computes only their
    keys and values. `padded`: as in `decode_at`.
    """
    labels = batch["labels"]
    labelled = labels != -100
    states = decode_at(backbone, batch_inputs(backbone, batch), labelled, padded=padded)
    logits = backbone.output_head(states)
    return nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="none")


def tail_loss(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy over the labelled positions."""
    return position_losses(backbone, batch).mean()


def decode_at(backbone: Backbone, inputs: Inputs, where: Tensor, *, padded: bool = False) -> Tensor:
    """Return the final states at some positions, one after another, (positions, d).

    `where`: (n, width) bool. The states are those of `Backbone.decode`, but the last layer skips
    the other positions, if the family says how (`Backbone.last_layer`), and all layers skip padding
    (`padding_free.py`). `padded`: the layers see each sequence as a row of the batch, padding
    included.
    """
    narrow, layer = backbone.last_layer, backbone.decoder_layers[-1]
    attention = backbone.text_config._attn_implementation
    if narrow is None or attention not in ("sdpa", "eager"):
        return backbone.decode(inputs)[where]
    rows = Rows.of(where)
    if attention == "sdpa" and not padded and _padding_costs(backbone, inputs):
        position = torch.arange(where.shape[1], device=where.device)
        tokens = Layout.of(position < inputs.length[:, None])
        with narrow(layer, FlatRows.among(rows, where, tokens), False):
            return _decode_flat(backbone, inputs, tokens, Layout.of(rows.valid))
    with narrow(layer, rows, attention == "eager"):
        states = backbone.decode(inputs)
    return states[rows.valid]


def _padding_costs(backbone: Backbone, inputs: Inputs) -> bool:
    """Return whether a batch has padding that costs more than its removal."""
    return (
        not backbone.cross_attends
        and inputs.segment is None
        and backbone.hidden_size >= LEAST_WIDTH
        and bool((inputs.length < inputs.states.shape[1]).any())
    )


def _decode_flat(backbone: Backbone, inputs: Inputs, tokens: Layout, asked: Layout) -> Tensor:
    """Return the last layer's output for a batch without padding, (positions, d)."""
    valid = tokens.valid
    arguments = {"position_ids": inputs.positions.expand(valid.shape)}
    arguments |= backbone.decoder_arguments(inputs)  # masks stay those of padded sequences
    arguments["position_ids"] = arguments["position_ids"][..., valid].unsqueeze(-2)
    states = tokens.flat(inputs.states.to(backbone.model.dtype))
    with without_padding(backbone.text_config, tokens, asked):
        found = backbone.decoder(inputs_embeds=states, use_cache=False, **arguments)
    return found.last_hidden_state[0]

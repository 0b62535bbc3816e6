"""A backbone's layers above the trunk on cached states, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gapinit.backbones.inputs import Inputs
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


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

    Positions without a label never reach the output matrix, and give the last layer keys and
    values only. `padded`: the layers are to see each sequence as a row of the batch.
    """
    labels = batch["labels"]
    labelled = labels != -100
    states = backbone.decode_at(batch_inputs(backbone, batch), labelled, padded=padded)
    logits = backbone.output_head(states)
    return nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="none")


def tail_loss(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """Return the mean cross-entropy over the labelled positions."""
    return position_losses(backbone, batch).mean()

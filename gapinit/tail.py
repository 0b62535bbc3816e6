"""The trained part of a backbone on cached states: its layers above the trunk, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gapinit.backbones.inputs import Inputs
from gapinit.low_rank import fuse

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.base import Backbone


def batch_inputs(backbone: Backbone, batch: Mapping[str, Tensor]) -> Inputs:
    """Return the decoder's inputs of a trunk's batch; token ids become embeddings."""
    names = ("states", "prefix_length", "length", "grid", "memory", "memory_length")
    inputs = Inputs(**{name: batch[name] for name in names if name in batch})
    return backbone.with_text(inputs, batch["input_ids"]) if "input_ids" in batch else inputs


def tail_states(backbone: Backbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Run the layers above the trunk: final states of image and text, (n, width, d)."""
    return backbone.decode(batch_inputs(backbone, batch))


def tail_loss(backbone: Backbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy over the labelled positions (-100: none).

    Positions without a label never reach the output matrix, and give the last layer keys and
    values only.
    """
    labels = batch["labels"]
    labelled = labels != -100
    logits = backbone.output_head(backbone.decode_at(batch_inputs(backbone, batch), labelled))
    return nn.functional.cross_entropy(logits.float(), labels[labelled])


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    def __init__(self, model: PeftModel, backbone: Backbone) -> None:
        super().__init__()
        fuse(model)
        self.model = model
        # In tuples: not a second owner of the parameters.
        self._backbone = (backbone,)
        self._dropouts = tuple(
            module for name, module in model.named_modules() if "lora_dropout" in name
        )
        super().train(False)

    def train(self, mode: bool = True) -> Tail:
        """Switch the adapters' dropout only: frozen layers always run without.

        Trainer calls this at every step, so the modules are looked up once.
        """
        for module in self._dropouts:
            module.train(mode)
        return self

    # By name, each of them: for a `**batch` Trainer would take care of averaging the loss itself.
    def forward(
        self,
        states: Tensor,
        labels: Tensor,
        prefix_length: Tensor,
        length: Tensor,
        grid: Tensor,
        input_ids: Tensor | None = None,
        memory: Tensor | None = None,
        memory_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the batch's loss, as `tail_loss` does."""
        batch = {
            "states": states,
            "labels": labels,
            "prefix_length": prefix_length,
            "length": length,
            "grid": grid,
            "input_ids": input_ids,
            "memory": memory,
            "memory_length": memory_length,
        }
        given = {name: value for name, value in batch.items() if value is not None}
        return {"loss": tail_loss(self._backbone[0], given)}

"""The trained part of a backbone on cached states: its layers above the trunk, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.blip2 import Blip2Backbone


def tail_states(backbone: Blip2Backbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Run the layers above the trunk: final states of image and text, (n, positions, d)."""
    prefix = batch["prefix"]
    if "text" in batch:
        inputs = torch.cat([prefix, batch["text"]], dim=1)
    elif "input_ids" in batch:
        inputs = backbone.embed(prefix, batch["input_ids"])
    else:
        raise ValueError("a batch needs text states or input_ids")
    return backbone.decode(inputs)


def tail_loss(backbone: Blip2Backbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy over the labelled positions (-100: none).

    Positions without a label never reach the output matrix.
    """
    labels = batch["labels"]
    states = tail_states(backbone, batch)[:, batch["prefix"].shape[1] :]
    labelled = labels != -100
    logits = backbone.output_head(states[labelled])
    return nn.functional.cross_entropy(logits.float(), labels[labelled])


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    def __init__(self, model: PeftModel, backbone: Blip2Backbone) -> None:
        super().__init__()
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

    def forward(
        self,
        prefix: Tensor,
        labels: Tensor,
        text: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the batch's loss, as `tail_loss` does."""
        batch = {"prefix": prefix, "labels": labels, "text": text, "input_ids": input_ids}
        given = {name: value for name, value in batch.items() if value is not None}
        return {"loss": tail_loss(self._backbone[0], given)}

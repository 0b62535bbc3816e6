"""The trained part of a backbone as Trainer wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gapinit.adapters.fused import fuse
from gapinit.backbones.tail import tail_loss

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.base import Backbone


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    losses: Tensor
    """(runs,), detached: the loss of each run that is trained, on the last batch."""

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

    def run_losses(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of each run that is trained, (runs,): here of one."""
        return tail_loss(self._backbone[0], batch)[None]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all weights that are trained, (runs, ...) each."""
        learned = (value.grad for value in self.parameters() if value.requires_grad)
        return [gradient[None] for gradient in learned if gradient is not None]

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
        labels: Tensor,
        prefix_length: Tensor,
        length: Tensor,
        states: Tensor | None = None,
        grid: Tensor | None = None,
        input_ids: Tensor | None = None,
        memory: Tensor | None = None,
        memory_length: Tensor | None = None,
        pixels: Mapping[str, Tensor] | None = None,
        image: Tensor | None = None,
        share: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the batch's loss, as `tail_loss` does, summed over the runs that are trained.

        `share`, (runs,): what each run's loss counts where processes divide a batch.
        """
        batch = {
            "states": states,
            "labels": labels,
            "prefix_length": prefix_length,
            "length": length,
            "grid": grid,
            "input_ids": input_ids,
            "memory": memory,
            "memory_length": memory_length,
            "pixels": pixels,
            "image": image,
        }
        given = {name: value for name, value in batch.items() if value is not None}
        losses = self.run_losses(given)
        if share is not None:
            losses = losses * share
        self.losses = losses.detach()
        return {"loss": losses.sum()}

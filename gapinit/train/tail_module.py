"""The trained part of a backbone as a module for Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gapinit.adapters.fused import fuse
from gapinit.backbones.tail import tail_loss

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.base import Backbone


class Tail(nn.Module):
    """The trained part of a backbone as a module for Trainer: maps a batch to its loss."""

    accepts_loss_kwargs = False
    """False: `tail_loss` is a mean, so Trainer averages it over accumulated batches."""

    def __init__(self, model: PeftModel, backbone: Backbone) -> None:
        super().__init__()
        fuse(model)
        self.model = model
        # In tuples, so that nn.Module does not register the parameters twice.
        self._backbone = (backbone,)
        self._dropouts = tuple(
            module for name, module in model.named_modules() if "lora_dropout" in name
        )
        super().train(False)

    def train(self, mode: bool = True) -> Tail:
        """Switch the dropout of adapters only; frozen layers stay in evaluation mode.

        Trainer calls this at every step, so the constructor collects the modules.
        """
        for module in self._dropouts:
            module.train(mode)
        return self

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Return a batch's loss (`gapinit.backbones.tail.tail_loss`)."""
        return {"loss": tail_loss(self._backbone[0], batch)}

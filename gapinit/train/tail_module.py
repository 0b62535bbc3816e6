"""The trained part of a backbone as Trainer wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gapinit.adapters.fused import fuse
from gapinit.backbones.tail import tail_loss

if TYPE_CHECKING:
    from peft import PeftModel

    from gapinit.backbones.base import Backbone


class Tail(nn.Module):
    """The trained part of a backbone as Trainer wants it: a batch in, a loss out."""

    accepts_loss_kwargs = False
    """Tells Trainer that `tail_loss` is a batch's mean: Trainer averages over accumulated ones."""

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

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Return a batch's loss (`gapinit.backbones.tail.tail_loss`)."""
        return {"loss": tail_loss(self._backbone[0], batch)}

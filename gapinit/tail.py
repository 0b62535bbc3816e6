"""The trained part of a backbone on cached states: its layers above the trunk, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gapinit.backbones.inputs import Inputs
from gapinit.errors import GapinitError
from gapinit.low_rank import fuse

if TYPE_CHECKING:
    from peft import PeftModel

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

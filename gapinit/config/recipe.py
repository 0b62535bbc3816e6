"""Settings of adapted layers, training and decoding, which a backbone may override."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gapinit.config.yaml_files import Settings

if TYPE_CHECKING:
    from gapinit.config.runs import Run

Positive = Annotated[int, Field(gt=0)]


class Layers(Settings):
    """Number of adapted decoder layers, and of lowest layers that are never selected."""

    num_layers: Positive
    exclude_bottom: Annotated[int, Field(ge=0)] = 0


class Training(Settings):
    """The recipe, the same for every method (paper, Table 14)."""

    learning_rate: Annotated[float, Field(gt=0, lt=1e30)] = 2e-4
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 32
    gradient_accumulation: Positive = 1
    epochs: Positive = 1
    group_by_length: bool = False
    """Batch captions of similar length: less padding, less random order."""
    max_caption_tokens: Positive = 32
    max_sequence_tokens: Positive = 256
    """For questions and conversations, prompt plus answer."""
    trunk: Literal["auto", "layer", "vision", "off"] = "auto"
    """Cached outputs of the frozen part; "auto": as much as the adapted layers allow."""
    trunk_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of cached states on disk; "auto": the model's."""
    seeds_per_job: Positive = 1
    """Seeds of a row that one process trains; affects no number."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 200
    """Steps between checkpoints, 0: none; affects no number."""


class Lora(Settings):
    """LoRA as in the paper's Table 13."""

    alpha_per_rank: Annotated[float, Field(gt=0)] = 2.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05


NUMBERLESS = {"seeds_per_job", "checkpoint_steps"}
"""Keys of `Training` that affect no number."""
ELSEWHERE = {"epochs", "max_caption_tokens", "max_sequence_tokens", "trunk", "trunk_dtype"}
"""Keys of `Training` that belong to a run's factors or to other stages."""
_OF_RUN = ("epochs",)
"""Keys that a run's factors override."""


class Recipe(Lora, Training):
    """The content of `gapinit train --recipe FILE`: the keys of `training` and `lora`."""

    def of(self, run: Run) -> Recipe:
        """Return the recipe of one run, whose factors override the keys of the file."""
        own = {key: getattr(run, key) or getattr(self, key) for key in _OF_RUN}
        return self.model_copy(update=own)


class Decoding(Settings):
    """Settings for decoding captions and answers."""

    num_beams: Positive = 1
    max_new_tokens: Positive = 32
    max_answer_tokens: Positive = 10
    batch_size: Positive = 64

"""What a backbone may have of its own: which layers are adapted, how it is trained and decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gapinit.config.yaml_files import Settings

if TYPE_CHECKING:
    from gapinit.config.runs import Run

Positive = Annotated[int, Field(gt=0)]


class Layers(Settings):
    """How many decoder layers are adapted, and which are never chosen by score."""

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
    """Batches of captions of like length: less padding is computed, order is less random."""
    max_caption_tokens: Positive = 32
    max_sequence_tokens: Positive = 256
    """Prompt and answer together, of questions and conversations."""
    trunk: Literal["auto", "layer", "vision", "off"] = "auto"
    """What is cached of the frozen part: as much as the adapted layers allow, or less."""
    trunk_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of cached states on disk; the model's own."""
    seeds_per_job: Positive = 1
    """How many seeds of a row one process trains; changes no number."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = 200
    """Steps between checkpoints, 0: none; changes no number."""


class Lora(Settings):
    """LoRA as in the paper's Table 13."""

    alpha_per_rank: Annotated[float, Field(gt=0)] = 2.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05


NUMBERLESS = {"seeds_per_job", "checkpoint_steps"}
"""Keys of `Training` that say how a run is made and change no number."""
ELSEWHERE = {"epochs", "max_caption_tokens", "max_sequence_tokens", "trunk", "trunk_dtype"}
"""Keys of `Training` that a run's factors or other stages hold."""
_OF_RUN = ("epochs",)
"""Keys that a run's factors override."""


class Recipe(Lora, Training):
    """What `gapinit train --recipe FILE` reads: the keys of `training` and `lora` in one file."""

    def of(self, run: Run) -> Recipe:
        """Return the recipe of one run: its own factors stand before the keys of the file."""
        own = {key: getattr(run, key) or getattr(self, key) for key in _OF_RUN}
        return self.model_copy(update=own)


class Decoding(Settings):
    """How captions and answers are decoded for scoring."""

    num_beams: Positive = 1
    max_new_tokens: Positive = 32
    max_answer_tokens: Positive = 10
    batch_size: Positive = 64

"""Small backbones: the real classes, at sizes that a laptop pretrains in minutes.

The order is that of real backbones. A tokenizer is trained on the corpus. The language model
learns to read (caption-like sentences, questions, facts, alt-texts) without any image. Vision
tower and image tokens learn which words the alt-texts of an image hold. Then the model learns to
speak of what it sees, from noisy alt-texts alone. The result sees and speaks, but captions in
alt-text style: fine-tuning has a style to change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gapinit.artifacts.artifacts import atomic_folder
from gapinit.backbones.base import Backbone
from gapinit.backbones.loading import no_progress_bars
from gapinit.backbones.pretraining import (
    Phase,
    Sight,
    load_alt_texts,
    pretrain_alignment,
    pretrain_language,
    pretrain_query,
    pretrain_tower,
)
from gapinit.backbones.source import PromptSettings, Source, write_source
from gapinit.config.backbone_settings import BackboneSettings
from gapinit.data.defects import Defects
from gapinit.data.pretraining import read_pretraining

COLOURS: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
"""How the image processors normalise pixels."""
INITIAL_SCALE = 0.1
"""Standard deviation of a vision tower's new weights.

Hugging Face draws weights with 0.02, made for widths near 1,000; at a width of 100 hardly any
signal would come through.
"""


class MiniSettings(BackboneSettings, ABC):
    """A small backbone: what its file `config/backbones/*.yaml` says, and how it is built."""

    pretraining: str
    """Dataset folder with `corpus.txt` and `alt_text.jsonl`."""
    seed: int
    image_size: int
    patch_size: int
    vision_layers: int
    vision_width: int
    decoder_layers: int
    decoder_width: int
    attention_heads: int
    vocabulary: int
    max_positions: int
    prompts: PromptSettings = PromptSettings()
    """Parts of the template that replace the family's own: words cost time on a laptop."""
    language: Phase
    vision: Phase
    alignment: Phase

    @property
    def tower_sizes(self) -> dict[str, int]:
        """Return a vision tower's sizes by the keys that most configurations use."""
        return {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.attention_heads,
        }

    @property
    def decoder_sizes(self) -> dict[str, int]:
        """Return the decoder's sizes by the keys that all configurations use."""
        return {
            "hidden_size": self.decoder_width,
            "num_hidden_layers": self.decoder_layers,
            "num_attention_heads": self.attention_heads,
            "max_position_embeddings": self.max_positions,
        }

    @property
    @abstractmethod
    def query(self) -> Phase:
        """Return the phase in which the image tokens learn words."""

    @abstractmethod
    def build(self, corpus: Sequence[str]) -> Backbone:
        """Return an untrained model with its processor, whose tokenizer is trained on a corpus."""

    @staticmethod
    @abstractmethod
    def sight_of(backbone: Any) -> Sight:
        """Return the parts of the model that lead from pixels to image tokens."""


def draw_weights(modules: Iterable[nn.Module]) -> None:
    """Draw the matrices of modules that see with a standard deviation of `INITIAL_SCALE`."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INITIAL_SCALE)


def pretrain(settings: MiniSettings, data: Path, output: Path, threads: int) -> None:
    """Build a small model, pretrain it and write its `save_pretrained` folder.

    `data` is the pretraining folder of `gapinit data`. The same settings, data, package versions
    and thread count give the same weights.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    with Defects() as defects:
        pairs, corpus = read_pretraining(data, defects)
    backbone = settings.build(corpus)
    model = backbone.model.train().requires_grad_(True)
    sight, seed = settings.sight_of(backbone), settings.seed
    with _same_again():
        pretrain_language(backbone, corpus, settings.language, seed)
        examples = load_alt_texts(backbone, pairs)
        pretrain_tower(backbone, sight, examples, settings.vision, seed + 1)
        seen = examples.seen_by(sight)
        pretrain_query(backbone, sight, seen, settings.query, seed + 2)
        pretrain_alignment(backbone, sight, seen, corpus, settings.alignment, seed + 3)
    with atomic_folder(output) as folder, no_progress_bars():
        model.eval().save_pretrained(folder)
        backbone.processor.save_pretrained(folder)
        if settings.prompts.model_dump(exclude_none=True):
            write_source(folder, Source(prompts=settings.prompts))


@contextmanager
def _same_again() -> Iterator[None]:
    """Add in one order on any number of threads.

    Otherwise some gradients on CPUs, of indexing among them, add in the order in which threads
    finish: two pretrainings of the small Qwen2-VL on two threads gave two models.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

"""Small backbones: the real classes, at sizes that a laptop pretrains in minutes.

The phases follow real backbones. A tokenizer is trained on the corpus, then the language model
(sentences, questions, facts, alt-texts, no images). Vision tower and image tokens learn which words
an image's alt-texts contain. Then the whole model learns to generate noisy alt-texts. It captions
images in the style of alt-texts, which fine-tuning then changes.
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
    pretrain_words,
)
from gapinit.backbones.source import PromptSettings, Source, write_source
from gapinit.config.backbone_settings import BackboneSettings
from gapinit.data.defects import Defects
from gapinit.data.pretraining import read_pretraining

COLOURS: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
"""How the image processors normalise pixels."""
INITIAL_SCALE = 0.1
"""Standard deviation of a vision tower's new weights.

Hugging Face's 0.02 suits widths near 1,000; at a width of 100 it lets hardly any signal through.
"""


class MiniSettings(BackboneSettings, ABC):
    """A small backbone: the keys of its file `config/backbones/*.yaml`, and how to build it."""

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
    """Parts of the family's template to replace, by shorter ones: tokens cost time on a laptop."""
    language: Phase
    vision: Phase
    query: Phase
    """The image tokens learn words; each family has its own key for this phase."""
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

    @abstractmethod
    def build(self, corpus: Sequence[str]) -> Backbone:
        """Return an untrained model; its tokenizer is trained on the corpus."""

    @staticmethod
    @abstractmethod
    def sight_of(backbone: Any) -> Sight:
        """Return the parts of the model between pixels and the language model."""


def draw_weights(modules: Iterable[nn.Module]) -> None:
    """Draw the modules' matrices with a standard deviation of `INITIAL_SCALE`."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INITIAL_SCALE)


def pretrain(settings: MiniSettings, data: Path, output: Path, threads: int) -> None:
    """Build a small model, pretrain it and write its `save_pretrained` folder.

    `data`: the pretraining folder of `gapinit data`. The weights depend only on settings, data,
    package versions and thread count.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    with Defects() as defects:
        pairs, corpus = read_pretraining(data, defects)
    backbone = settings.build(corpus)
    model = backbone.model.train().requires_grad_(True)
    it, seed = settings.sight_of(backbone), settings.seed
    with _deterministic():
        pretrain_language(backbone, corpus, settings.language, seed)
        texts = load_alt_texts(backbone, pairs)
        title, phase = "vision tower: words in images", settings.vision
        pretrain_words(title, backbone, it.see, it.tower, texts.pixels, texts, phase, seed + 1)
        with torch.no_grad():
            patches = torch.cat([it.see(block) for block in texts.pixels.split(512)])
        title, phase = "image tokens: words in images", settings.query
        pretrain_words(title, backbone, it.query, it.querying, patches, texts, phase, seed + 2)
        pretrain_alignment(backbone, it, patches, texts, corpus, settings.alignment, seed + 3)
    with atomic_folder(output) as folder, no_progress_bars():
        model.eval().save_pretrained(folder)
        backbone.processor.save_pretrained(folder)
        if settings.prompts.model_dump(exclude_none=True):
            write_source(folder, Source(prompts=settings.prompts))


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch use deterministic algorithms only.

    Otherwise some gradients on a CPU, for example of indexing, are summed in the order in which
    threads finish: the small Qwen2-VL, pretrained twice on two threads, had different weights.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

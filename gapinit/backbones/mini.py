"""Small backbones: the real classes, at sizes that a laptop pretrains in minutes.

The order is that of real backbones. A tokenizer is trained on the corpus; the language model
learns to read (caption-like sentences, questions, facts, alt-texts) without any image; vision
tower and image tokens learn which words an image's alt-texts hold; then the model learns to speak
of what it sees, from noisy alt-texts alone. What comes out sees and speaks, but captions in
alt-text style: fine-tuning has a style to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from gapinit.artifacts.artifacts import atomic_folder, digest, package_versions, sha256
from gapinit.artifacts.checkpoints import clear
from gapinit.backbones.base import Backbone
from gapinit.backbones.loading import no_progress_bars
from gapinit.backbones.phases import run_phases
from gapinit.backbones.pretraining import (
    AltTexts,
    Phase,
    Sight,
    load_alt_texts,
    pretrain_alignment,
    pretrain_language,
    pretrain_query,
    pretrain_vision,
)
from gapinit.backbones.source import PromptSettings, Source, write_source
from gapinit.config.backbone_settings import BackboneSettings
from gapinit.config.versions import VERSIONS
from gapinit.data.defects import Defects
from gapinit.data.pretraining import ALT_TEXT, CORPUS, read_pretraining


class MiniSettings(BackboneSettings):
    """What the files of all small backbones say, `config/backbones/*.yaml`."""

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


Mini = TypeVar("Mini", bound=MiniSettings)


def make(
    settings: Mini,
    query: Phase,
    train_tokenizer: Callable[[Sequence[str], int], Any],
    build: Callable[[Mini, Any], Backbone],
    sight_of: Callable[[Backbone], Sight],
    data: Path,
    output: Path,
    threads: int,
) -> None:
    """Build a small model, pretrain it on `data` and write its `save_pretrained` folder.

    `query`: the phase in which image tokens learn words.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    with Defects() as defects:
        pairs, corpus = read_pretraining(data, defects)
    backbone = build(settings, train_tokenizer(corpus, settings.vocabulary))
    model = backbone.model.train().requires_grad_(True)
    sight, seed = sight_of(backbone), settings.seed

    @cache
    def examples() -> AltTexts:
        return load_alt_texts(backbone, pairs)

    @cache
    def seen() -> AltTexts:
        return examples().seen_by(sight)

    phases = [
        lambda: pretrain_language(backbone, corpus, settings.language, seed),
        lambda: pretrain_vision(backbone, sight, examples(), settings.vision, seed + 1),
        lambda: pretrain_query(backbone, sight, seen(), query, seed + 2),
        lambda: pretrain_alignment(backbone, sight, seen(), corpus, settings.alignment, seed + 3),
    ]
    with _same_again():
        run_phases(model, phases, output, _identity(settings, data, pairs, threads))
    with atomic_folder(output) as folder, no_progress_bars():
        model.eval().save_pretrained(folder)
        backbone.processor.save_pretrained(folder)
        if settings.prompts.model_dump(exclude_none=True):
            write_source(folder, Source(prompts=settings.prompts))
    clear(output)


def _identity(
    settings: MiniSettings, data: Path, pairs: Sequence[tuple[Path, str]], threads: int
) -> str:
    """Return the digest of all that the weights depend on."""
    files = [data / CORPUS, data / ALT_TEXT, *dict.fromkeys(path for path, _ in pairs)]
    content = {
        "version": VERSIONS["backbone"],
        "settings": settings.model_dump(mode="json"),
        "data": [sha256(path) for path in files],
        "threads": threads,
        "packages": package_versions(),
    }
    return digest(content)


@contextmanager
def _same_again() -> Iterator[None]:
    """Add in one order on any number of threads.

    Some gradients on CPUs, of indexing among them, otherwise add as threads come: pretraining the
    small Qwen2-VL twice on two threads gave two models.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

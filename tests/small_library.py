"""A small random BLIP-2 with its processor and pairs, and its states by plain transformers.

What the library computes in batches is computed here one pair at a time, through the whole model's
own forward pass on the real processor's output, with hooks of this module's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from .small_backbone import make_backbone

LAYERS, WIDTH = 3, 32
CAPTIONS = (
    "a red square above a small blue circle",
    "two green triangles",
    "a large yellow star to the left of a grey square on a dark background",
    "one circle",
    "a blue square and a red star",
    "three small white circles below a triangle",
    "a star",
)
Pair = tuple[Image.Image, str]


@dataclass(frozen=True)
class SmallLibrary:
    """Where the small model lies, and the pairs that it is measured on."""

    folder: Path
    pairs: tuple[Pair, ...]

    def model(self, **options: Any) -> Blip2ForConditionalGeneration:
        return Blip2ForConditionalGeneration.from_pretrained(self.folder, **options).eval()

    def processor(self) -> Blip2Processor:
        return Blip2Processor.from_pretrained(self.folder)


@lru_cache(maxsize=1)
def small_library(base: Path) -> SmallLibrary:
    torch.set_num_threads(1)
    folder = Path(mkdtemp(prefix="small-library-", dir=base)) / "model"
    make_backbone(folder, list(CAPTIONS) * 4, vocabulary=300)
    random = np.random.default_rng(1)
    pairs = tuple(
        (Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)), caption)
        for caption in CAPTIONS
    )
    return SmallLibrary(folder, pairs)


def inputs_of(model: Any, processor: Any, pair: Pair) -> dict[str, Tensor]:
    inputs = dict(processor(images=pair[0], text=pair[1], return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


@torch.no_grad()
def logits(model: Any, library: SmallLibrary) -> Tensor:
    """Return the model's own logits on the first pairs, one after the other."""
    processor = library.processor()
    found = [model(**inputs_of(model, processor, pair)).logits[0] for pair in library.pairs[:3]]
    return torch.cat(found).float()


@dataclass
class Reference:
    """Outputs of one model on all pairs: pooled by the plain mean in float64."""

    layers: Tensor
    """(layers, pairs, 2, width): vision and text."""
    modules: dict[str, Tensor]
    """(pairs, 2, d_out) by module name."""

    @property
    def gaps(self) -> Tensor:
        return (self.layers[:, :, 1] - self.layers[:, :, 0]).mean(dim=1)

    def module_gap(self, name: str) -> Tensor:
        return (self.modules[name][:, 1] - self.modules[name][:, 0]).mean(dim=0)


@torch.no_grad()
def reference(model: Any, processor: Any, pairs: Sequence[Pair]) -> Reference:
    """Measure a plain model: one pair a pass, no padding, hooks on the last layer's norm too."""
    decoder = model.language_model.model.decoder
    names = {id(module): name for name, module in model.named_modules()}
    watched = [*decoder.layers]
    watched += [one for one in decoder.layers.modules() if isinstance(one, nn.Linear)]
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda module, _, output: outputs.update({names[id(module)]: output})
        )
        for module in watched
    ]
    before_norm: list[Tensor] = []
    handles.append(
        decoder.final_layer_norm.register_forward_pre_hook(
            lambda _, inputs: before_norm.append(inputs[0])
        )
    )
    pooled: dict[str, list[Tensor]] = {names[id(module)]: [] for module in watched}
    for pair in pairs:
        inputs = inputs_of(model, processor, pair)
        hidden = model(**inputs, output_hidden_states=True).language_model_outputs.hidden_states
        last = outputs[names[id(decoder.layers[-1])]]
        torch.testing.assert_close(last, before_norm[-1])  # what enters the final norm
        assert not torch.allclose(last, hidden[-1], atol=1e-3), "that entry is behind the norm"
        image = inputs["input_ids"][0] == model.config.image_token_index
        bos = int(image.sum())
        assert image[:bos].all() and inputs["input_ids"][0, bos] == processor.tokenizer.bos_token_id
        for name, output in outputs.items():
            states = output.double().reshape(len(image), -1)
            sides = [states[:bos].mean(dim=0), states[bos + 1 :].mean(dim=0)]
            pooled[name].append(torch.stack(sides))
    for handle in handles:
        handle.remove()
    stacked = {name: torch.stack(values) for name, values in pooled.items()}
    layers = torch.stack([stacked.pop(names[id(layer)]) for layer in decoder.layers])
    return Reference(layers, stacked)


def hooks_of(model: nn.Module) -> dict[str, list[int]]:
    """Return the keys of every hook in the model, by module and kind."""
    kinds = [name for name in vars(model) if name.endswith("_hooks")]
    return {
        f"{name}.{kind}": list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in kinds
        if getattr(module, kind)
    }


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}

"""Stage `states`: write pooled vision and text hidden states of every decoder layer to HDF5.

The frozen model runs one forward pass over (image, caption). For layer l and pair i, h_v is the
mean of the layer's output over the image positions, h_t that over the caption positions (no BOS,
no template, no padding). Source: paper, Section 4.2 and Appendix G.4.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from gapinit.artifacts.artifacts import create_hdf5, sha256
from gapinit.artifacts.shards import Shard, blocks_of
from gapinit.backbones import load_backbone
from gapinit.backbones.fingerprint import backbone_digest
from gapinit.backbones.hooks import output_of
from gapinit.backbones.read_ahead import Block, read_ahead
from gapinit.config.versions import VERSIONS
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.progress import track
from gapinit.states.pooling import Pooling, caption_positions, pool, pool_sides

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.backbones.inputs import Inputs
    from gapinit.data.captions import CaptionedImage

Context = Literal["joint", "separate"]


def extract_states(
    backbone: Path,
    manifest: Path,
    output: Path,
    *,
    pairs: int,
    seed: int,
    split: str = "train",
    pooling: Pooling = "mean",
    context: Context = "joint",
    batch_size: int = 64,
    max_caption_tokens: int = 32,
    shard: str | None = None,
    device: str = "cpu",
) -> None:
    """Write the states of `pairs` calibration pairs, drawn from one split of a dataset.

    The file (kind "states") holds `vision` and `text`, (L, N, d) float32, contiguous, written
    block by block: memory does not grow with N. The first n pairs are the calibration set of size
    n, so one extraction serves all sizes. `shard`: "I/N", part of the pairs.
    """
    from gapinit.backbones.weights_fingerprint import model_fingerprint  # imports PEFT

    data = read_manifest(manifest)
    chosen = calibration_pairs(
        data.captions(split), pairs, seed, origin=f"{manifest}: split '{split}'"
    )
    require_images(manifest, [image.path for image, _ in chosen], data.root)
    model = load_backbone(backbone, device)
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "pairs": pairs,
        "seed": seed,
        "pooling": pooling,
        "context": context,
        "max_caption_tokens": max_caption_tokens,
        "batch_size": batch_size,
        "version": VERSIONS["states"],
    }
    part = Shard.parse(shard)
    own = chosen[part.of(len(chosen), batch_size)]
    blocks = blocks_of(len(own), batch_size)
    paths = [image.path for image, _ in own]
    with create_hdf5(output, "states", inputs) as file:
        part.record(file)
        file["fingerprint"] = model_fingerprint(model.model).to_json()
        file["image_id"] = np.array([image.image_id for image, _ in own], dtype=np.int64)
        file["caption"] = np.array([said for _, said in own], dtype=h5py.string_dtype())
        for name in ("vision", "text"):
            file.create_dataset(name, (model.num_layers, len(own), model.hidden_size), "f4")
        for block in track(read_ahead(model, paths, blocks), "states", len(blocks)):
            vision, text = pooled_states(
                model,
                own[block.rows],
                pooling=pooling,
                context=context,
                max_caption_tokens=max_caption_tokens,
                read=block,
            )
            file["vision"][:, block.rows] = vision.numpy()
            file["text"][:, block.rows] = text.numpy()


def calibration_pairs(
    images: Sequence[CaptionedImage], count: int, seed: int, origin: str
) -> list[tuple[CaptionedImage, str]]:
    """Draw `count` images without replacement, and one caption of each, in a fixed random order.

    The first n of them are the calibration set of size n.
    """
    if count > len(images):
        raise GapinitError(
            f"{origin}: expected at least {count} images (largest calibration size plus held-out "
            f"sample), found {len(images)} images: lower calibration.sizes, calibration.size or "
            "calibration.heldout"
        )
    silent = next((image.image_id for image in images if not image.captions), None)
    if silent is not None:
        raise GapinitError(f"{origin}: image {silent!r} has no caption, expected at least one")
    # ASSUME: one caption per image, so that all images have the same weight.
    draw = random.Random(f"calibration {seed}")
    order = draw.sample(range(len(images)), len(images))
    pairs = [(images[index], draw.choice(images[index].captions)) for index in order]
    return pairs[:count]


@torch.inference_mode()
def pooled_states(
    backbone: Backbone,
    pairs: Sequence[tuple[CaptionedImage, str]],
    *,
    pooling: Pooling,
    context: Context,
    max_caption_tokens: int,
    read: Block | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the pooled vision and text states of some pairs, each (L, n, d) float32.

    Hooks read each layer's output: the last entry of Hugging Face's `hidden_states` is taken after
    the final norm, so its coordinates differ from the other layers'. A hook pools immediately, so
    only one layer's full states are in memory. `read`: the pairs' images if they were read ahead.
    """
    if read is None:
        images = backbone.look([load_image(image.path) for image, _ in pairs])
    else:
        images = backbone.seen(read.pixels, read.sizes)
    encoded = backbone.encode_captions([caption for _, caption in pairs], max_caption_tokens)
    texts, labels = [ids for ids, _ in encoded], [found for _, found in encoded]
    inputs = backbone.embed(images, texts)
    if context == "joint":
        said = caption_positions(inputs, labels)
        both = pooled_sides(backbone, inputs, pooling, said)
        vision, text = both[:, :, 0], both[:, :, 1]
    else:
        vision = pooled_sides(backbone, inputs, pooling, None)[:, :, 0]
        alone = backbone.embed_texts(texts, backbone.head)
        text = _pooled_text(backbone, alone, pooling, caption_positions(alone, labels))
    _require_finite(vision, text, pairs)
    return vision.cpu().contiguous(), text.cpu().contiguous()


def pooled_sides(
    backbone: Backbone, inputs: Inputs, pooling: Pooling, said: Tensor | None
) -> Tensor:
    """Return each layer's vision state and, given caption positions `said`, its text state.

    The result is (L, n, 1 or 2, d) float32.
    """
    apart: list[tuple[Tensor, Tensor]] = []

    def measure(states: Tensor) -> Tensor:
        seen, where = backbone.vision_states(inputs, states)
        if seen is states:
            sides = [where] if said is None else [where, said]
            return pool_sides(states, torch.stack(sides, dim=1), pooling).float()
        # Cross-attended features are the same in every layer, so they are pooled once.
        if not (apart and apart[-1][0] is seen):
            apart.append((seen, pool(seen, where, pooling).float()))
        vision = apart[-1][1]
        if said is None:
            return vision[:, None]
        return torch.stack([vision, pool(states, said, pooling).float()], dim=1)

    return _layer_by_layer(backbone, inputs, measure)


def _pooled_text(backbone: Backbone, inputs: Inputs, pooling: Pooling, said: Tensor) -> Tensor:
    """Return each layer's text state, (L, n, d) float32."""
    return _layer_by_layer(backbone, inputs, lambda states: pool(states, said, pooling).float())


def _layer_by_layer(
    backbone: Backbone, inputs: Inputs, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run the decoder; return `measure` of each layer's output, stacked from the lowest layer."""
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in backbone.decoder_layers:
            hooks.enter_context(output_of(layer, lambda output: found.append(measure(output))))
        backbone.decode(inputs)
    return torch.stack(found)


def _require_finite(
    vision: Tensor, text: Tensor, pairs: Sequence[tuple[CaptionedImage, str]]
) -> None:
    for name, states in (("vision", vision), ("text", text)):
        bad = (~torch.isfinite(states)).any(dim=-1).nonzero()
        if len(bad):
            layer, row = bad[0].tolist()
            raise GapinitError(
                f"{pairs[row][0].path}: the {name} state of layer {layer} is not finite "
                f"(image {pairs[row][0].image_id})"
            )

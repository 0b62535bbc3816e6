"""Stage `states`: pooled vision and text hidden states of every decoder layer, into HDF5.

One forward pass of the frozen model over (image, caption). For layer l and pair i,
h_v is the mean of the layer's output over the image positions and h_t over the caption positions
(no BOS, no template, no padding); source: paper, Section 4.2 and Appendix G.4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gapinit.artifacts import create_hdf5, digest, sha256
from gapinit.backbones import load_backbone
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.pooling import Pooling, caption_positions, pool
from gapinit.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gapinit.backbones.base import Backbone
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
    device: str = "cpu",
) -> None:
    """Write the states of `pairs` calibration pairs, drawn from one split of a dataset.

    The file (kind "states") holds `vision` and `text`, (L, N, d) float32, contiguous, written
    block by block: memory does not grow with N. A prefix of the pairs is itself a calibration
    set, so sets of several sizes are nested and cost one extraction.
    """
    data = read_manifest(manifest)
    chosen = calibration_pairs(
        data.captions(split), pairs, seed, origin=f"{manifest}: split '{split}'"
    )
    require_images(manifest, [image.path for image, _ in chosen], data.root)
    model = load_backbone(backbone, device)
    shape = (model.num_layers, len(chosen), model.hidden_size)
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "pairs": pairs,
        "seed": seed,
        "pooling": pooling,
        "context": context,
        "max_caption_tokens": max_caption_tokens,
        "version": VERSIONS["states"],
    }
    with create_hdf5(output, "states", inputs) as file:
        vision = file.create_dataset("vision", shape, dtype="f4")
        text = file.create_dataset("text", shape, dtype="f4")
        file["image_id"] = [image.image_id for image, _ in chosen]
        file["caption"] = [caption for _, caption in chosen]
        for start in track(range(0, len(chosen), batch_size), "states"):
            block = chosen[start : start + batch_size]
            rows = slice(start, start + len(block))
            vision_block, text_block = pooled_states(
                model,
                block,
                pooling=pooling,
                context=context,
                max_caption_tokens=max_caption_tokens,
            )
            vision[:, rows], text[:, rows] = vision_block.numpy(), text_block.numpy()


def calibration_pairs(
    images: Sequence[CaptionedImage], count: int, seed: int, origin: str
) -> list[tuple[CaptionedImage, str]]:
    """Draw `count` images without repetition, and one caption of each, in a fixed random order.

    The first n of them are the calibration set of size n.
    """
    if count > len(images):
        raise GapinitError(
            f"{origin}: {count} calibration pairs wanted (largest calibration size and held-out "
            f"sample together), found {len(images)} images: lower calibration.sizes, "
            "calibration.size or calibration.heldout"
        )
    # ASSUME: one caption an image, so that no image weighs more than another.
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
) -> tuple[Tensor, Tensor]:
    """Return the pooled vision and text states of some pairs, each (L, n, d) float32.

    Layers are read by hooks at their own output, before the final norm that Hugging Face applies
    to the last entry of `hidden_states`: behind it, layer L would lie in other coordinates.
    """
    images = backbone.look([load_image(image.path) for image, _ in pairs])
    encoded = backbone.encode_captions([caption for _, caption in pairs], max_caption_tokens)
    texts = [ids for ids, _ in encoded]
    inputs = backbone.embed(images, texts)
    with _layer_outputs(backbone) as outputs:
        backbone.decode(inputs)
        seen = [backbone.vision_states(inputs, states) for states in outputs]
        vision = torch.stack([pool(states, where, pooling).float() for states, where in seen])
        if context == "separate":
            outputs.clear()
            inputs = backbone.embed(images.without_tokens(), texts)
            backbone.decode(inputs)
        where = caption_positions(inputs, [labels for _, labels in encoded])
        text = torch.stack([pool(states, where, pooling).float() for states in outputs])
    _require_finite(vision, text, pairs)
    return vision.cpu(), text.cpu()


@contextmanager
def _layer_outputs(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Collect every decoder layer's output during the block, bottom layer first."""
    outputs: list[Tensor] = []

    def keep(_module: torch.nn.Module, _arguments: object, output: Tensor) -> None:
        outputs.append(output)

    handles = [layer.register_forward_hook(keep) for layer in backbone.decoder_layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


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


def backbone_digest(folder: Path) -> str:
    """Return the digest that tells one backbone's weights from another's."""
    from gapinit.backbones.fingerprint import fingerprint

    return digest(fingerprint(Path(folder)))

"""Stage `predict`: captions for an evaluation split, decoded from cached image features.

The vision part is frozen, so an image's features are the same for every run: they are computed
once for each backbone and split.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.progress import track
from gapinit.states import backbone_digest


@torch.inference_mode()
def extract_features(
    backbone: Path,
    manifest: Path,
    output: Path,
    *,
    split: str = "test",
    batch_size: int = 64,
    device: str = "cpu",
) -> None:
    """Write the image tokens of a split in the language model's space (kind "features")."""
    images = read_manifest(manifest).split(split)
    model = load_backbone(backbone, device)
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "version": VERSIONS["predict"],
    }
    shape = (len(images), model.num_image_tokens, model.hidden_size)
    with create_hdf5(output, "features", inputs) as file:
        features = file.create_dataset("features", shape, dtype="f4")
        file["image_id"] = [image.image_id for image in images]
        for start in track(range(0, len(images), batch_size), "image features"):
            block = images[start : start + batch_size]
            pixels = model.pixel_values([load_image(image.path) for image in block])
            values = model.image_features(pixels).float().cpu().numpy()
            features[start : start + len(block)] = values


def predict_captions(
    backbone: Path,
    features: Path,
    adapter: Path | None,
    output: Path,
    *,
    num_beams: int,
    max_new_tokens: int,
    batch_size: int,
    device: str = "cpu",
) -> None:
    """Caption every image of a feature file and write COCO's result format.

    `adapter`: a PEFT adapter folder, or None for the backbone as it is (zero-shot).
    """
    with open_hdf5(features, "features") as file:
        if hdf5_inputs(file)["backbone"] != backbone_digest(backbone):
            raise GapinitError(
                f"{features}: made from another backbone's weights. Delete it and run "
                "`gapinit features` again."
            )
        image_ids = file["image_id"][:].tolist()
        values = torch.from_numpy(file["features"][:])
    model = load_backbone(backbone, device)
    if adapter is not None:
        from gapinit.adapters import load_adapter

        # Merging changes no output beyond rounding and saves the adapters' own products.
        load_adapter(model, adapter).merge_and_unload()
    captions: list[str] = []
    for start in track(range(0, len(values), batch_size), "captions"):
        block = values[start : start + batch_size]
        captions += model.generate(block, max_new_tokens=max_new_tokens, num_beams=num_beams)
    write_json(
        output,
        [
            {"image_id": image_id, "caption": caption}
            for image_id, caption in zip(image_ids, captions, strict=True)
        ],
    )

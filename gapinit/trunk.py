"""Stage `trunk`: what the frozen layers compute on the training set, once for all runs.

Everything below the first adapted layer is frozen: its output is the same for every seed, method,
noise level and epoch. The trunk keeps the states that enter that layer: an image's tokens once
(they stand first and attention is causal, so no text changes them), the tokens of a text (a
caption, a question with its answer, a conversation) once each. Training then runs the layers
above only. If the first layer itself is adapted, the trunk keeps the image features alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, read_json, sha256
from gapinit.backbones import load_backbone
from gapinit.backbones.prompts import Segment, training_texts
from gapinit.data.images import load_image
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.progress import track
from gapinit.states import backbone_digest

if TYPE_CHECKING:
    import h5py
    from numpy.typing import NDArray

    from gapinit.backbones.blip2 import Blip2Backbone


def extract_trunk(
    backbone: Path,
    manifest: Path,
    layers: Path,
    strategy: str,
    output: Path,
    *,
    split: str = "train",
    max_tokens: int = 32,
    images_per_batch: int = 16,
    device: str = "cpu",
) -> None:
    """Write the training set's states at the input of the lowest layer that `strategy` adapts.

    The file (kind "trunk") holds `prefix` (images, image tokens, d); for all texts one after
    another `input_ids`, `labels` (the next token, EOS last; -100: not learned) and, unless the
    lowest layer is adapted, `text` (tokens, d); `offset` (texts + 1,) and `image_row` (texts,).
    """
    first = min(read_json(layers)[strategy])
    data = read_manifest(manifest)
    model = load_backbone(backbone, device)
    images, encoded = encoded_texts(model, data, split, max_tokens, origin=str(manifest))
    lengths = [len(ids) for texts in encoded for ids, _ in texts]
    offset = np.concatenate([[0], np.cumsum(lengths)])
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "first_layer": first,
        "max_tokens": max_tokens,
        "version": VERSIONS["trunk"],
    }
    model.keep_below(first)
    with create_hdf5(output, "trunk", inputs) as file:
        file.attrs["first_layer"] = first
        shape = (len(images), model.num_image_tokens, model.hidden_size)
        file.create_dataset("prefix", shape, dtype="f4")
        if first > 0:
            file.create_dataset("text", (int(offset[-1]), model.hidden_size), dtype="f4")
        file["offset"] = offset
        file["image_row"] = np.repeat(np.arange(len(images)), [len(texts) for texts in encoded])
        file["input_ids"] = np.concatenate([ids for texts in encoded for ids, _ in texts])
        file["labels"] = np.concatenate([labels for texts in encoded for _, labels in texts])
        token = 0
        for start in track(range(0, len(images), images_per_batch), "trunk"):
            rows = slice(start, start + images_per_batch)
            prefix, text = _trunk_states(model, images[rows], encoded[rows], first)
            file["prefix"][start : start + len(prefix)] = prefix
            if text is not None:
                file["text"][token : token + len(text)] = text
                token += len(text)


Encoded = tuple[list[int], list[int]]
"""Token ids and labels of one text."""


def encoded_texts(
    backbone: Blip2Backbone, manifest: Manifest, split: str, max_tokens: int, origin: str
) -> tuple[list[Path], list[list[Encoded]]]:
    """Return the images of a split and, for each, its samples' texts as token ids and labels.

    Raises GapinitError for a text of which nothing is left to learn within `max_tokens`.
    """
    texts: dict[Path, list[list[Segment]]] = {}
    for sample in manifest.split(split):
        new = training_texts(backbone.prompts, manifest.kind, sample)
        texts.setdefault(sample.path, []).extend(new)
    flat = [text for group in texts.values() for text in group]
    encoded = iter(backbone.encode_segments(flat, max_tokens))
    grouped = [[next(encoded) for _ in group] for group in texts.values()]
    for path, group in zip(texts, grouped, strict=True):
        for _, labels in group:
            if all(label == -100 for label in labels):
                raise GapinitError(
                    f"{origin}: a text about {path} has nothing to learn in its first "
                    f"{max_tokens} tokens: its prompt is longer. Raise training.max_sequence_tokens"
                )
    return list(texts), grouped


@torch.inference_mode()
def _trunk_states(
    backbone: Blip2Backbone,
    images: Sequence[Path],
    encoded: Sequence[Sequence[Encoded]],
    first: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the states of some images' tokens and, one after another, of their texts'."""
    pixels = backbone.pixel_values([load_image(path) for path in images])
    features = backbone.image_features(pixels)
    if first == 0:
        return features.float().cpu().numpy(), None
    texts = [len(group) for group in encoded]
    image_row = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(texts))
    input_ids, lengths = backbone.pad([ids for group in encoded for ids, _ in group])
    states = backbone.decode(backbone.embed(features[image_row], input_ids)).float().cpu()
    seen = backbone.num_image_tokens
    first_text = np.cumsum([0, *texts[:-1]])
    valid = torch.arange(input_ids.shape[1])[None] < lengths.cpu()[:, None]
    return states[first_text, :seen].numpy(), states[:, seen:][valid].numpy()


@dataclass(frozen=True)
class Trunk:
    """A trunk file, read through memory maps: random access without loading it."""

    first_layer: int
    prefix: NDArray[np.float32]
    text: NDArray[np.float32] | None
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    offset: NDArray[np.int64]
    image_row: NDArray[np.int64]
    inputs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.image_row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a text's index and token ids; `batch` reads a whole batch's states at once."""
        start, end = self.offset[index], self.offset[index + 1]
        return {"index": index, "input_ids": self.input_ids[start:end]}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of the texts that Trainer's sampler chose."""
        return self.batch([item["index"] for item in items])

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return one padded batch: prefix, text states or token ids, labels (-100: none)."""
        chosen = np.asarray(indices)
        starts, ends = self.offset[chosen], self.offset[chosen + 1]
        width = int((ends - starts).max())
        labels = np.full((len(chosen), width), -100, dtype=np.int64)
        input_ids = np.zeros((len(chosen), width), dtype=np.int64)
        batch = {"prefix": torch.from_numpy(np.asarray(self.prefix[self.image_row[chosen]]))}
        hidden = self.prefix.shape[2]
        text = None
        if self.text is not None:
            text = np.zeros((len(chosen), width, hidden), dtype=np.float32)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            labels[row, : end - start] = self.labels[start:end]
            if text is not None and self.text is not None:
                text[row, : end - start] = self.text[start:end]
            else:
                input_ids[row, : end - start] = self.input_ids[start:end]
        batch["labels"] = torch.from_numpy(labels)
        if text is None:
            batch["input_ids"] = torch.from_numpy(input_ids)
        else:
            batch["text"] = torch.from_numpy(text)
        return batch


def read_trunk(path: Path) -> Trunk:
    """Open a trunk file; states are mapped from disk, token ids are read."""
    with open_hdf5(path, "trunk") as file:
        return Trunk(
            first_layer=int(file.attrs["first_layer"]),
            prefix=_memory_map(path, file["prefix"]),
            text=_memory_map(path, file["text"]) if "text" in file else None,
            input_ids=file["input_ids"][:],
            labels=file["labels"][:],
            offset=file["offset"][:],
            image_row=file["image_row"][:],
            inputs=hdf5_inputs(file),
        )


def _memory_map(path: Path, dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Map a contiguous HDF5 dataset through its offset in the file."""
    return np.memmap(
        path, mode="r", dtype=dataset.dtype, shape=dataset.shape, offset=dataset.id.get_offset()
    )

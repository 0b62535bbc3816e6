"""States: equal to a plain forward pass of the real model on the real processor's output."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapinit.backbones import load_backbone
from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.data.captions import CaptionedImage
from gapinit.errors import GapinitError
from gapinit.states.states import calibration_pairs, extract_states, pooled_states

from .small_backbone import SmallWorld, reference_inputs, small_world

TOKENS = 50  # above every caption's length: nothing is cut
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
OPTIONS: dict[str, Any] = {"pooling": "mean", "context": "joint", "max_caption_tokens": TOKENS}
Pair = tuple[CaptionedImage, str]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def backbone(world: SmallWorld) -> Blip2Backbone:
    return load_backbone(world.backbone)


@pytest.fixture(scope="module")
def pairs(world: SmallWorld) -> list[Pair]:
    pairs = calibration_pairs(world.images("train"), 9, seed=3, origin="tiny")
    lengths = {len(caption.split()) for _, caption in pairs}
    assert len(lengths) > 2, "captions of several lengths, so that a batch is padded"
    return pairs


@pytest.fixture(scope="module")
def reference(world: SmallWorld, pairs: list[Pair]) -> list[dict[str, Tensor]]:
    """For each pair alone: its inputs, and each layer's output from the model's own record.

    Hugging Face keeps the last layer's output behind the final norm; a hook on the norm's input
    gives it in front of the norm, which is checked here against what the model keeps.
    """
    model, processor = world.stock_model(), world.stock_processor()
    norm = model.language_model.model.decoder.final_layer_norm
    before_norm: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: before_norm.append(inputs[0]))
    found = []
    for image, caption in pairs:
        inputs = reference_inputs(processor, image, caption)
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
            hidden = outputs.language_model_outputs.hidden_states
            torch.testing.assert_close(norm(before_norm[-1]), hidden[-1])
        is_image = inputs["input_ids"][0] == model.config.image_token_index
        found.append(
            {
                "states": torch.cat([*hidden[1:-1], before_norm[-1]]),
                "after_norm": hidden[-1][0],
                "is_image": is_image,
                # the caption follows BOS, which follows the image
                "is_caption": ~is_image & (torch.arange(len(is_image)) > int(is_image.sum())),
            }
        )
    return found


def expected_states(reference: list[dict[str, Tensor]], pooling: str, part: str) -> Tensor:
    pooled = []
    for entry in reference:
        states = entry["states"][:, entry[part]]
        pooled.append(states[:, -1] if pooling == "last" else states.double().mean(dim=1).float())
    return torch.stack(pooled, dim=1)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_states_are_those_of_a_plain_forward_pass(
    backbone: Blip2Backbone, pairs: list[Pair], reference: list[dict[str, Tensor]], pooling: str
) -> None:
    vision, text = pooled_states(backbone, pairs, **OPTIONS | {"pooling": pooling})
    assert vision.shape == text.shape == (3, len(pairs), 32) and vision.dtype == torch.float32
    torch.testing.assert_close(vision, expected_states(reference, pooling, "is_image"), **CLOSE)
    torch.testing.assert_close(text, expected_states(reference, pooling, "is_caption"), **CLOSE)


def test_what_the_comparison_would_miss(reference: list[dict[str, Tensor]]) -> None:
    """With BOS, or behind the norm, the numbers are others: the comparison above can fail."""
    entry = reference[0]
    states, caption = entry["states"], entry["is_caption"]
    with_bos = (~entry["is_image"]) & torch.ones_like(caption)
    right = states[:, caption].mean(dim=1)
    assert (states[:, with_bos].mean(dim=1) - right).abs().max() > 100 * 2e-5
    assert (entry["after_norm"][caption].mean(dim=0) - right[-1]).abs().max() > 100 * 2e-5


def test_batching_and_padding_change_nothing(backbone: Blip2Backbone, pairs: list[Pair]) -> None:
    together = pooled_states(backbone, pairs, **OPTIONS)
    alone = [pooled_states(backbone, [pair], **OPTIONS) for pair in pairs]
    for part in (0, 1):
        one_by_one = torch.cat([states[part] for states in alone], dim=1)
        torch.testing.assert_close(together[part], one_by_one, **CLOSE)


def test_separate_context_shows_the_text_no_image(
    world: SmallWorld, backbone: Blip2Backbone, pairs: list[Pair]
) -> None:
    joint_vision, joint_text = pooled_states(backbone, pairs, **OPTIONS)
    vision, text = pooled_states(backbone, pairs, **OPTIONS | {"context": "separate"})
    torch.testing.assert_close(vision, joint_vision, rtol=0, atol=0)
    assert (text - joint_text).abs().max() > 0.1
    language_model, tokenizer = (
        world.stock_model().language_model,
        world.stock_processor().tokenizer,
    )
    for row, (_, caption) in enumerate(pairs):
        with torch.no_grad():
            ids = tokenizer(caption, return_tensors="pt").input_ids
            hidden = language_model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(2):
            torch.testing.assert_close(text[layer, row], hidden[layer + 1][0, 1:].mean(0), **CLOSE)
    other = [(pairs[0][0], caption) for _, caption in pairs]  # every caption with the first image
    _, same = pooled_states(backbone, other, **OPTIONS | {"context": "separate"})
    torch.testing.assert_close(same, text, rtol=0, atol=0)


def hooks(backbone: Blip2Backbone) -> int:
    return sum(len(module._forward_hooks) for module in backbone.model.modules())


def test_no_hook_is_left_behind(
    backbone: Blip2Backbone, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hooks(backbone)
    pooled_states(backbone, pairs, **OPTIONS)
    assert hooks(backbone) == before
    norm = backbone.decoder.final_layer_norm
    monkeypatch.setattr(norm, "forward", lambda states: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pooled_states(backbone, pairs, **OPTIONS)
    assert hooks(backbone) == before


def test_non_finite_states_name_sample_and_layer(world: SmallWorld, tmp_path: Path) -> None:
    pairs = calibration_pairs(world.images("train"), 20, seed=0, origin="tiny")
    stock = world.stock_processor().tokenizer
    tokens = [set(stock(caption)["input_ids"][:32]) for _, caption in pairs]
    row = next(row for row in range(5, 20) if tokens[row] - set.union(*tokens[:row]))
    token = min(tokens[row] - set.union(*tokens[:row]))
    folder = Path(shutil.copytree(world.backbone, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("decoder.embed_tokens.weight"))
    weights[name][token] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    image = pairs[row][0]
    with pytest.raises(GapinitError) as error:
        extract_states(folder, world.manifest, tmp_path / "s.h5", pairs=20, seed=0, batch_size=3)
    assert str(image.path) in str(error.value) and str(image.image_id) in str(error.value)
    assert "state of layer 0 is not finite" in str(error.value)
    assert list(tmp_path.iterdir()) == [folder], "nothing half-written is left"


def test_the_layer_is_named_too(backbone: Blip2Backbone, pairs: list[Pair]) -> None:
    last: Any = backbone.decoder_layers[2]
    bias = last.fc2.bias
    kept = bias.clone()
    try:
        bias[3] = float("nan")
        with pytest.raises(GapinitError, match="the vision state of layer 2 is not finite"):
            pooled_states(backbone, pairs, **OPTIONS)
    finally:
        bias.copy_(kept)


def test_too_many_pairs_are_refused_before_the_model_is_loaded(
    world: SmallWorld, tmp_path: Path
) -> None:
    output = tmp_path / "s.h5"
    with pytest.raises(GapinitError, match="split 'train': expected at least 25 images.*found 24"):
        extract_states(tmp_path / "no-backbone", world.manifest, output, pairs=25, seed=0)
    assert not output.exists()


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in ("vision", "text", "image_id", "caption")}


def test_smaller_sets_are_prefixes_of_larger_ones(world: SmallWorld, tmp_path: Path) -> None:
    large, small = read(world.states), tmp_path / "small.h5"
    extract_states(world.backbone, world.manifest, small, pairs=7, seed=0, batch_size=2)
    for name, values in read(small).items():
        expected = large[name][:, :7] if values.ndim == 3 else large[name][:7]
        if values.dtype == np.float32:
            np.testing.assert_allclose(values, expected, **CLOSE)
        else:
            assert values.tolist() == expected.tolist()


def test_the_same_seed_gives_the_same_bytes(world: SmallWorld, tmp_path: Path) -> None:
    for name in ("one", "two"):
        extract_states(world.backbone, world.manifest, tmp_path / name, pairs=20, seed=0)
    one, two, original = (read(path) for path in (tmp_path / "one", tmp_path / "two", world.states))
    for name, values in one.items():
        assert values.tobytes() == two[name].tobytes() == original[name].tobytes() or (
            values.dtype == object
            and values.tolist() == two[name].tolist() == original[name].tolist()
        )


def test_an_image_without_caption_is_told(world: SmallWorld) -> None:
    images = world.images("train")
    images[2] = replace(images[2], captions=())
    with pytest.raises(GapinitError, match=f"tiny: image {images[2].image_id!r} has no caption"):
        calibration_pairs(images, 9, seed=0, origin="tiny")


def test_pairs_are_drawn_from_the_split(world: SmallWorld) -> None:
    images = world.images("train")
    captions = {image.image_id: image.captions for image in images}
    drawn = calibration_pairs(images, 24, seed=0, origin="tiny")
    assert sorted(image.image_id for image, _ in drawn) == sorted(captions)
    assert all(caption in captions[image.image_id] for image, caption in drawn)
    assert len({captions[image.image_id].index(caption) for image, caption in drawn}) > 1
    assert drawn[:5] == calibration_pairs(images, 5, seed=0, origin="tiny")
    assert drawn != calibration_pairs(images, 24, seed=1, origin="tiny")
    # The draw depends on the order of the split alone, not on where the images lie.
    moved = [replace(image, path=Path("elsewhere") / image.path.name) for image in images]
    again = calibration_pairs(moved, 24, seed=0, origin="tiny")
    assert [(image.image_id, caption) for image, caption in again] == [
        (image.image_id, caption) for image, caption in drawn
    ]

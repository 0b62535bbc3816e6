"""Trunk: training on cached states gives the whole model's loss and gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Blip2ForConditionalGeneration

from gapinit.adapters.lora import add_lora
from gapinit.backbones import load_backbone
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import Trunk, extract_trunk, read_trunk

from .small_backbone import (
    LAYERS,
    TOKENS,
    SmallWorld,
    randomise,
    reference_batch,
    reference_inputs,
    small_world,
    trainable,
)

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def stock_lora(model: Blip2ForConditionalGeneration, layers: list[int], rank: int) -> PeftModel:
    """Put LoRA on the same modules by their names, spelt out here, with plain PEFT."""
    names = [
        f"language_model.model.decoder.layers.{layer}.{module}"
        for layer in layers
        for module in (*MODULES, "fc1", "fc2")
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    return get_peft_model(model, config)


def cached_tail(world: SmallWorld, strategy: str, rank: int) -> tuple[Tail, Trunk]:
    trunk = read_trunk(world.trunk(strategy))
    backbone = load_backbone(world.backbone)
    if trunk.text is None:
        backbone.drop_vision()
    else:
        backbone.cut_below(trunk.first_layer)
    model = add_lora(
        backbone, LAYERS[strategy], rank=rank, alpha=2 * rank, dropout=0.0, init_lora_weights=True
    )
    return Tail(model, backbone).train(), trunk


@pytest.mark.parametrize(("strategy", "rank"), [("naive", 1), ("gg-safe", 4), ("all", 4)])
def test_loss_and_gradients_are_the_whole_models(
    world: SmallWorld, strategy: str, rank: int
) -> None:
    chosen = [0, 3, 17, 40, 41, 119]
    tail, trunk = cached_tail(world, strategy, rank)
    whole = stock_lora(world.stock_model(), LAYERS[strategy], rank)
    randomise(tail.model)
    randomise(whole)
    assert list(trainable(tail.model)) == list(trainable(whole)), "the full model's names"
    loss = tail(**trunk.batch(chosen))["loss"]
    expected = whole(**reference_batch(world, chosen)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for name, value in trainable(whole).items():
        gradient = trainable(tail.model)[name].grad
        assert gradient is not None and value.grad is not None
        difference = torch.linalg.vector_norm(gradient - value.grad)
        assert difference <= 1e-5 * torch.linalg.vector_norm(value.grad), name


def test_frozen_weights_have_no_gradient(world: SmallWorld) -> None:
    tail, trunk = cached_tail(world, "naive", 1)
    tail(**trunk.batch([0, 1]))["loss"].backward()
    with_gradient = {name for name, value in tail.named_parameters() if value.grad is not None}
    assert with_gradient == {f"model.{name}" for name in trainable(tail.model)}
    assert len(with_gradient) == 2 * 6 * 2


@pytest.mark.parametrize("strategy", list(LAYERS))
def test_contents(world: SmallWorld, strategy: str) -> None:
    """The file holds the states of a plain forward pass, an image's once, and the next tokens."""
    first = min(LAYERS[strategy])
    model, processor = world.stock_model(), world.stock_processor()
    images = world.images("train")
    with h5py.File(world.trunk(strategy)) as file:
        content = {name: file[name][:] for name in file}
        assert file.attrs["first_layer"] == first
    assert set(content) == {
        *("prefix", "prefix_offset", "grid", "offset", "image_row", "input_ids", "labels"),
        *(["text"] if first else []),
    }
    captions = [(row, text) for row, image in enumerate(images) for text in image.captions]
    assert content["prefix"].shape == (4 * len(images), 32)
    assert content["prefix_offset"].tolist() == [4 * row for row in range(len(images) + 1)]
    assert content["image_row"].tolist() == [row for row, _ in captions]
    assert content["offset"][0] == 0 and len(content["offset"]) == len(captions) + 1
    assert content["offset"][-1] == len(content["input_ids"]) == len(content["labels"])
    for index in (0, 1, 4, 5, 63, len(captions) - 1):
        row, text = captions[index]
        inputs = reference_inputs(processor, images[row], text)
        ids = inputs["input_ids"][0, 4 : 4 + TOKENS].tolist()
        span = slice(*content["offset"][index : index + 2])
        assert content["input_ids"][span].tolist() == ids
        assert content["labels"][span].tolist() == [*ids[1:], processor.tokenizer.eos_token_id]
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        hidden = outputs.language_model_outputs.hidden_states[first][0].numpy()
        if first:
            np.testing.assert_allclose(
                content["prefix"][4 * row : 4 * row + 4], hidden[:4], rtol=1e-4, atol=2e-5
            )
            np.testing.assert_allclose(
                content["text"][span], hidden[4 : 4 + len(ids)], rtol=1e-4, atol=2e-5
            )
        else:
            with torch.no_grad():
                features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
            np.testing.assert_allclose(
                content["prefix"][4 * row : 4 * row + 4], features, rtol=1e-4, atol=2e-5
            )


def test_block_size_changes_nothing(world: SmallWorld, tmp_path: Path) -> None:
    output = tmp_path / "trunk.h5"
    extract_trunk(world.backbone, world.manifest, world.layers, "naive", output, images_per_batch=5)
    with h5py.File(output) as small, h5py.File(world.trunk("naive")) as large:
        for name in large:
            np.testing.assert_allclose(small[name][:], large[name][:], rtol=1e-4, atol=2e-5)


def test_a_batch_is_padded_behind_the_captions(world: SmallWorld) -> None:
    trunk = read_trunk(world.trunk("naive"))
    lengths = np.diff(trunk.offset)
    chosen = [int(lengths.argmax()), int(lengths.argmin())]
    batch = trunk.batch(chosen)
    assert isinstance(trunk.prefix.rows, np.memmap) and len(trunk) == 120
    longest, shortest = 4 + lengths[chosen]  # behind the image
    assert longest > shortest and batch["labels"].shape == (2, longest)
    assert batch["length"].tolist() == [longest, shortest]
    assert batch["prefix_length"].tolist() == [4, 4]
    assert (batch["labels"][:, :4] == -100).all()
    assert (batch["labels"][1, shortest:] == -100).all()
    assert (batch["labels"][0, 4:] != -100).all()
    assert (batch["labels"][1, 4:shortest] != -100).all()
    assert trunk.text is not None
    start = trunk.offset[chosen[1]]
    expected = np.concatenate(
        [
            trunk.prefix[int(trunk.image_row[chosen[1]])],
            trunk.text[start : start + lengths[chosen[1]]],
        ]
    )
    np.testing.assert_array_equal(batch["states"][1, :shortest], expected)
    alone = trunk.batch(chosen[1:])
    assert alone["labels"].shape == (1, shortest)
    # What fills a row up changes no loss.
    tail, _ = cached_tail(world, "naive", 1)
    noisy = copy.deepcopy(trunk.batch(chosen))
    noisy["states"][1, shortest:] = 100.0
    assert tail(**noisy)["loss"].item() == pytest.approx(tail(**batch)["loss"].item(), rel=1e-6)

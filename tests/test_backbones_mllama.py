"""Llama 3.2 Vision: what cross-attention adds to the other families, against plain transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import MllamaProcessor

from gapinit import estimate_gap, initialize_lora_gap_weights
from gapinit.backbones.generation import generate, generate_tokens
from gapinit.backbones.mllama import MllamaBackbone
from gapinit.data.captions import CaptionedImage
from gapinit.errors import GapinitError
from gapinit.states.pooling import pool
from gapinit.states.states import pooled_states

from .backbone_cases import CAPTIONS, Case, World, case_named
from .case_mllama import (
    CROSS_LAYERS,
    LAYERS,
    TILES,
    mllama_arguments,
    mllama_image_processor,
    mllama_tokenizer,
)

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
TILE_TOKENS = 10  # 9 patches and the class token
SIZES = [(20, 24), (40, 24), (48, 48), (24, 72), (24, 40)]
OWN_TILES = [1, 2, 4, 3, 2]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def pictures() -> list[Image.Image]:
    """Return images of every number of tiles."""
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


@pytest.fixture(scope="module")
def world(world_of: Callable[[Case], World]) -> World:
    return world_of(case_named("mllama"))


def real_processor(backbone: MllamaBackbone) -> MllamaProcessor:
    return MllamaProcessor(backbone.processor.image_processor, backbone.processor.tokenizer)


def sequence(backbone: MllamaBackbone, ids: Sequence[int]) -> list[int]:
    return [*backbone.head, backbone.image_token_id, *ids]


def stock_inputs(backbone: MllamaBackbone, row: int, ids: Sequence[int]) -> dict[str, Tensor]:
    """Return what the plain model takes for one picture and text, without padding."""
    whole = torch.tensor([sequence(backbone, ids)])
    given = mllama_arguments(backbone.model, backbone, pictures()[row : row + 1], whole)
    return {"input_ids": whole, **given}


def layer_outputs(model: Any, run: Any) -> dict[int, Tensor]:
    """Return what each decoder layer that `run` calls gives, by its index."""
    outputs: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, output, i=i: outputs.update({i: output}))
        for i, layer in enumerate(model.model.language_model.layers)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


@torch.no_grad()
def mean_feature(model: Any, backbone: MllamaBackbone, row: int) -> Tensor:
    """Return the mean projected feature of a picture's own tiles, by the plain model's modules."""
    given = stock_inputs(backbone, row, [])
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    seen = model.model.vision_model(**{name: given[name] for name in names}).last_hidden_state
    projected = model.model.multi_modal_projector(seen)[0, 0]
    assert projected.shape[:2] == (TILES, TILE_TOKENS)
    return projected[: OWN_TILES[row]].double().mean(dim=(0, 1))


def test_states_depend_on_the_image_from_the_first_layer_that_reads_it(world: World) -> None:
    backbone = world.backbone()
    [(ids, _)] = backbone.encode_captions(CAPTIONS[:1], 20)
    images = backbone.image_features(backbone.pixels(pictures()))
    assert images.grid.tolist() == [[tiles] for tiles in OWN_TILES]
    one, other = (
        layer_outputs(
            backbone.model,
            lambda row=row: backbone.decode(backbone.embed(images.take([row]), [ids])),
        )
        for row in (0, 2)
    )
    text = slice(len(backbone.head) + 1, None)
    for layer in range(LAYERS):
        difference = (one[layer] - other[layer])[0, text].abs().amax(dim=1)
        assert (difference == 0).all() if layer < CROSS_LAYERS[0] else (difference > 0.01).all()


def test_padding_tiles_are_seen_by_the_template_alone(world: World) -> None:
    """As the plain model has it: rows whose mask hides everything are left without a mask."""
    backbone = world.backbone()
    [(ids, _)] = backbone.encode_captions(CAPTIONS[:1], 20)
    images = backbone.image_features(backbone.pixels(pictures()[:2]))
    inputs = backbone.embed(images, [ids, ids])
    assert inputs.memory is not None
    spoilt = inputs.memory.clone()
    for row in range(2):
        spoilt[row, OWN_TILES[row] * TILE_TOKENS :] = 7.0
    first = CROSS_LAYERS[0]
    plain, changed = (
        layer_outputs(backbone.model, lambda given=given: backbone.decode(given))[first]
        for given in (inputs, replace(inputs, memory=spoilt))
    )
    start = len(backbone.head)
    assert torch.equal(plain[:, start:], changed[:, start:]), "the image's token and the text"
    assert not torch.isclose(plain[:, :start], changed[:, :start]).all(dim=2).any()


def test_text_alone_skips_the_layers_that_read_images(world: World, tmp_path: Path) -> None:
    """`context: separate`: a state for every layer; a skipped layer passes its input on."""
    backbone, model = world.backbone(), world.stock()
    pairs = []
    for row, (image, caption) in enumerate(zip(pictures(), CAPTIONS, strict=True)):
        image.save(tmp_path / f"{row}.png")
        pairs.append((CaptionedImage(row, tmp_path / f"{row}.png", (caption,), "train"), caption))
    options: dict[str, Any] = {"pooling": "mean", "max_caption_tokens": 20}
    vision, text = pooled_states(backbone, pairs, context="separate", **options)
    joint_vision, joint_text = pooled_states(backbone, pairs, context="joint", **options)
    assert text.shape == vision.shape == (LAYERS, len(pairs), backbone.hidden_size)
    assert torch.equal(vision, joint_vision)
    for row, (_, caption) in enumerate(pairs):
        [(ids, labels)] = backbone.encode_captions([caption], 20)
        whole = torch.tensor([[*backbone.head, *ids]])
        outputs = layer_outputs(model, lambda whole=whole: model(input_ids=whole))
        assert set(outputs) == set(range(LAYERS)) - set(CROSS_LAYERS)
        tokens = sum(label != -100 for label in labels) - 1
        for layer in range(LAYERS):
            below = outputs[layer - (layer in CROSS_LAYERS)][0, -tokens:].mean(dim=0)
            torch.testing.assert_close(text[layer, row], below, **CLOSE)
        feature = mean_feature(model, backbone, row).float()
        for layer in range(LAYERS):
            torch.testing.assert_close(vision[layer, row], feature, **CLOSE)
    assert not torch.allclose(text[-1], joint_text[-1], atol=0.1)


def test_texts_without_an_image_are_the_plain_models(world: World) -> None:
    backbone, model = world.backbone(), world.stock()
    texts = backbone.texts.token_ids(CAPTIONS[:2])
    with torch.no_grad():
        states = backbone.decode(backbone.embed_texts(texts))
        for row, ids in enumerate(texts):
            expected = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            torch.testing.assert_close(states[row, : len(ids)], expected, rtol=1e-4, atol=1e-4)


def test_the_last_feature_is_the_last_of_the_images_own(world: World) -> None:
    backbone = world.backbone()
    images = backbone.image_features(backbone.pixels(pictures()))
    inputs = backbone.embed(images, [[5]] * len(images))
    last = pool(*backbone.vision_states(inputs, inputs.states), "last").float()
    for row, tiles in enumerate(OWN_TILES):
        expected = images.take([row]).tokens[tiles * TILE_TOKENS - 1]
        torch.testing.assert_close(last[row], expected, rtol=0, atol=0)


def test_a_model_in_memory_has_no_gap_at_its_modules(world: World) -> None:
    backbone, model = world.backbone(), world.stock()
    pairs = list(zip(pictures(), CAPTIONS, strict=True))
    gap = estimate_gap(model, real_processor(backbone), pairs, batch_size=2, progress=False)
    assert not gap.modules, "an image is at no module's output"
    names = list(backbone.named_targets([1, 2]))
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=names))
    with pytest.raises(GapinitError, match="cross-attention.*coordinates='layer'"):
        initialize_lora_gap_weights(adapted, gap, coordinates="module")
    report = initialize_lora_gap_weights(adapted, gap)
    assert [module.name for module in report.modules] == names


def test_tokens_and_reading_are_those_of_the_real_processor(world: World) -> None:
    backbone = world.backbone()
    processor = real_processor(backbone)
    prompts = [backbone.prompts.caption, backbone.prompts.question.format(question="Is it red?")]
    texts = [f"{backbone.prompts.head}<|image|>{prompt}" for prompt in prompts]
    found = processor(
        images=[[image] for image in pictures()[2:4]],
        text=[f"<|begin_of_text|>{text}" for text in texts],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    encoded = backbone.encode_prompts(prompts, 4)
    for row, ids in enumerate(encoded):
        whole = found["input_ids"][row][found["attention_mask"][row] == 1]
        assert sequence(backbone, ids) == whole.tolist()
    images = backbone.image_features(backbone.pixels(pictures()[2:4]))
    inputs = backbone.embed(images, encoded)
    mask = backbone.generation_arguments(inputs, found["input_ids"])["cross_attention_mask"]
    torch.testing.assert_close(mask, found["cross_attention_mask"], rtol=0, atol=0)
    own = mllama_arguments(backbone.model, backbone, pictures()[2:4], found["input_ids"])
    torch.testing.assert_close(own["cross_attention_mask"], mask, rtol=0, atol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_on_every_number_of_tiles(world: World, num_beams: int) -> None:
    """One at a time, by the plain model on pixels; here in one padded batch, one image twice."""
    backbone, model = world.backbone(), world.stock()
    chosen = [3, 0, 2, 1, 3]
    prompts = [backbone.prompts.question.format(question="Is it " * row) for row in range(5)]
    images = backbone.image_features(backbone.pixels(pictures()))
    answers = generate_tokens(backbone, images.take(chosen), 8, num_beams, prompts)
    for row, picture, prompt in zip(range(5), chosen, prompts, strict=True):
        [ids] = backbone.encode_prompts([prompt], 8)
        inputs = stock_inputs(backbone, picture, ids)
        expected = model.generate(
            **inputs,
            max_new_tokens=8,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=backbone.eos_token_id,
            pad_token_id=backbone.pad_token_id,
        )[0, inputs["input_ids"].shape[1] :]
        assert answers[row, : len(expected)].tolist() == expected.tolist()
        assert (answers[row, len(expected) :] == backbone.pad_token_id).all()
    assert not torch.equal(answers[0], answers[4]), "another prompt, another answer"


def test_decoding_leaves_the_model_as_it_was(world: World) -> None:
    backbone = world.backbone()
    images = backbone.image_features(backbone.pixels(pictures()))
    generate(backbone, images.take([3, 0, 3]), 4, 2)
    assert not backbone.model.model._forward_pre_hooks
    with pytest.raises(RuntimeError):
        generate_tokens(backbone, images, 4, -1)  # no number of beams
    assert not backbone.model.model._forward_pre_hooks


def test_the_image_token_is_never_an_answer(world: World) -> None:
    """It has an embedding, but no row in the output matrix."""
    backbone = world.backbone()
    rows: int = backbone.model.lm_head.weight.shape[0]
    assert backbone.image_token_id == rows == len(mllama_tokenizer()) - 1
    assert backbone.decoder.embed_tokens.weight.shape[0] == rows + 8
    assert mllama_image_processor().max_image_tiles == TILES

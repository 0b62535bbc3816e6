"""Qwen: its positions and its token expansion are those of transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from gapinit.backbones.qwen2_vl import Qwen2VLBackbone

from .backbone_cases import Case, World, case_named, pictures

TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
)
ASKING = "Provide a one-sentence caption for the provided image."


@pytest.fixture(scope="module")
def world(world_of: Callable[[Case], World]) -> World:
    return world_of(case_named("qwen2_vl"))


@pytest.fixture
def backbone(world: World) -> Qwen2VLBackbone:
    return world.backbone()


@pytest.fixture
def processor(backbone: Qwen2VLBackbone, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real processor; without torchvision its video half, which no image needs, is left out."""
    halves: dict[str, Any] = {
        "image_processor": backbone.processor.image_processor,
        "tokenizer": backbone.processor.tokenizer,
    }
    if is_torchvision_available():
        from transformers import Qwen2VLVideoProcessor

        halves["video_processor"] = Qwen2VLVideoProcessor()
    else:
        monkeypatch.setattr(
            ProcessorMixin, "check_argument_for_proper_class", lambda *_, **__: None
        )
        halves["video_processor"] = None
    return Qwen2VLProcessor(**halves)


def test_tokens_are_the_real_processors(backbone: Qwen2VLBackbone, processor: Any) -> None:
    text = TEMPLATE.format(text=ASKING)
    [prompt] = backbone.encode_prompts([backbone.prompts.caption], 4)
    for image in pictures():
        expected = processor(images=[image], text=[text], return_tensors="pt")
        count = backbone.image_tokens(*image.size)
        found = [*backbone.head, *[backbone.image_token_id] * count, *prompt]
        assert expected["input_ids"][0].tolist() == found
        pixels = backbone.pixels([image])
        torch.testing.assert_close(pixels["pixel_values"], expected["pixel_values"])
        assert pixels["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()


def test_positions_are_those_of_get_rope_index(world: World, backbone: Qwen2VLBackbone) -> None:
    model = world.stock()
    images = backbone.image_features(backbone.pixels(pictures()))
    prompts = ["short" if index % 2 else "a much longer prompt" for index in range(len(images))]
    encoded = backbone.encode_prompts(prompts, 4)
    inputs = backbone.embed(images, encoded)
    ids = torch.full(inputs.states.shape[:2], backbone.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (text, count) in enumerate(zip(encoded, images.counts.tolist(), strict=True)):
        whole = [*backbone.head, *[backbone.image_token_id] * count, *text]
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, : len(whole)] = 1
    grid = backbone.pixels(pictures())["image_grid_thw"]
    assert len(grid.unique(dim=0)) > 2, "grids of several shapes, wide and high"
    expected, _ = model.model.get_rope_index(
        ids, (ids == backbone.image_token_id).int(), grid, attention_mask=mask
    )
    found = backbone.positions(inputs)
    torch.testing.assert_close(found[:, mask.bool()], expected[:, mask.bool()])
    plain = torch.arange(found.shape[2])
    assert not torch.equal(found[0, 0], plain), "an image takes fewer positions than tokens"


def test_a_text_alone_has_plain_positions(backbone: Qwen2VLBackbone) -> None:
    inputs = backbone.embed_texts([[5, 6, 7, 8], [9]])
    assert backbone.positions(inputs).tolist() == [[[0, 1, 2, 3]] * 2] * 3

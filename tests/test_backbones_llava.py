"""LLaVA-1.5: its processor's tokens with every kind of tokenizer, and its tower's options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaProcessor, SiglipVisionConfig

from gapinit.backbones import load_backbone
from gapinit.backbones.llava import LlavaBackbone
from gapinit.backbones.loading import Processor
from gapinit.errors import GapinitError

from .backbone_cases import byte_level, pictures
from .case_llava import (
    PATCHES,
    SPECIAL,
    llama_tokenizer,
    llava_arguments,
    llava_image_processor,
    small_llava,
)

KINDS = ("normalised", "every piece", "first piece", "bytes")


def tokenizer_of(kind: Any) -> Any:
    if kind == "bytes":
        return byte_level(SPECIAL, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return llama_tokenizer(kind)


def backbone_with(tokenizer: Any, **options: Any) -> LlavaBackbone:
    processor = Processor(tokenizer, llava_image_processor())
    return LlavaBackbone(small_llava(tokenizer, **options), processor)


def real_processor(backbone: LlavaBackbone) -> LlavaProcessor:
    return LlavaProcessor(
        backbone.processor.image_processor,
        backbone.processor.tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_real_processor(kind: str) -> None:
    backbone = backbone_with(tokenizer_of(kind))
    tokenizer, prompts = backbone.processor.tokenizer, backbone.prompts
    question = prompts.question.format(question="is it red?")
    for prompt in (prompts.caption, question):
        for image in pictures():
            text = f"{prompts.head}<image>{prompt}"
            expected = real_processor(backbone)(images=image, text=text, return_tensors="pt")
            [ids] = backbone.encode_prompts([prompt], 4)
            placeholders = [backbone.image_token_id] * backbone.image_tokens(*image.size)
            found = [*backbone.head, *placeholders, *ids]
            assert found == expected["input_ids"][0].tolist()
    alone = backbone.texts.token_ids([question])[0]
    [beside] = backbone.encode_prompts([question], 4)
    # The kinds that mark the beginning of a text, but not what stands behind an image.
    assert (alone != beside) == (kind == "first piece"), "beside an image and alone"
    assert (backbone.head[0] == tokenizer.bos_token_id) == (kind != "bytes")


@pytest.mark.parametrize("kind", ["normalised", "every piece", "first piece"])
def test_answers_and_turns_are_those_of_the_whole_string(kind: str) -> None:
    """Pieces are tokenised alone, and Llama's tokenizer gives the spaces between them."""
    backbone = backbone_with(tokenizer_of(kind))
    prompts = backbone.prompts
    chat, turn = (
        template.format(question=question)
        for template, question in ((prompts.chat, "is it red?"), (prompts.turn, "and now?"))
    )
    text = [(chat, False), ("a red star", True), (turn, False), ("one circle", True)]
    [(ids, labels)] = backbone.encode_segments([text], 100)
    # Vicuna's conversation, spelt out.
    whole = (
        "USER: <image>\nis it red? ASSISTANT: a red star</s>"
        "USER: and now? ASSISTANT: one circle</s>"
    )
    if kind == "first piece":  # puts no mark behind a special token
        whole = whole.replace("</s>USER", "</s> USER")
    expected = backbone.processor.tokenizer(whole)["input_ids"]
    assert [*backbone.head, backbone.image_token_id, *ids, labels[-1]] == expected


@pytest.mark.parametrize("layer", [-2, 1, [-1, 1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_towers_layer_and_class_token_are_the_configurations(strategy: str, layer: Any) -> None:
    tokenizer = llama_tokenizer("normalised")
    options = {"vision_feature_select_strategy": strategy, "vision_feature_layer": layer}
    backbone = backbone_with(tokenizer, **options)
    images = backbone.image_features(backbone.pixels(pictures()))
    assert set(images.counts.tolist()) == {PATCHES + (strategy == "full")}
    assert images.counts.tolist() == [backbone.image_tokens(*one.size) for one in pictures()]
    [ids] = backbone.encode_prompts([backbone.prompts.caption], 4)
    with torch.no_grad():
        states = backbone.decode(backbone.embed(images.take([1]), [ids]))
        row = [*backbone.head, *[backbone.image_token_id] * int(images.counts[1]), *ids]
        given = llava_arguments(backbone.model, backbone, pictures()[1:2], torch.tensor([row]))
        expected = backbone.model.model(torch.tensor([row]), **given).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


def test_another_vision_tower_is_refused(tmp_path: Path) -> None:
    model = small_llava(llama_tokenizer("normalised"))
    model.config.vision_config = SiglipVisionConfig()
    with pytest.raises(GapinitError, match="this model: .*'siglip_.*', expected 'clip_"):
        LlavaBackbone(model, None)
    config = {"model_type": "llava", "vision_config": {"model_type": "pixtral"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(GapinitError, match=f"{tmp_path}: the vision tower"):
        load_backbone(tmp_path)

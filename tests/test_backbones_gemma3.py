"""Gemma 3's own traps: the processor's template, masks that look both ways, windows by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    Gemma3Processor,
)

from gapinit.backbones import load_backbone
from gapinit.backbones.base import Backbone
from gapinit.backbones.mini_gemma3 import MiniGemma3Settings
from gapinit.backbones.source import Source, write_source
from gapinit.config.yaml_files import read_settings

from .backbone_cases import CAPTIONS, CORPUS, Case, World, case_named, pictures
from .case_gemma3 import IMAGE_TOKENS

QUESTION = "Is it red?"
SETTINGS = Path(__file__).parents[1] / "config" / "backbones" / "mini-gemma3-test.yaml"


@pytest.fixture(scope="module")
def world(world_of: Callable[[Case], World]) -> World:
    return world_of(case_named("gemma3"))


@pytest.fixture
def backbone(world: World) -> Backbone:
    return world.backbone()


def processor_of(backbone: Backbone) -> Any:
    return Gemma3Processor(
        backbone.processor.image_processor,
        backbone.processor.tokenizer,
        image_seq_length=IMAGE_TOKENS,
    )


def chat(*turns: str) -> str:
    """Return a conversation as the published chat template writes it, without its BOS.

    The tokenizer puts that; answers stand between the questions.
    """
    text = ""
    for index, turn in enumerate(turns):
        role = "model" if index % 2 else "user"
        image = "" if index else "<start_of_image>"
        text += f"<start_of_turn>{role}\n{image}{turn}<end_of_turn>\n"
    return f"{text}<start_of_turn>model\n"


@pytest.mark.parametrize("kind", ["caption", "question", "chat"])
def test_the_template_is_the_processors(backbone: Backbone, kind: str) -> None:
    """Head, placeholders and prompt are what the real processor makes of the chat."""
    prompt = getattr(backbone.prompts, kind).format(question=QUESTION)
    asked = prompt.removeprefix("<end_of_image>\n\n").split("<end_of_turn>")[0]
    found = processor_of(backbone)(text=chat(asked), images=[pictures()[0]], return_tensors="pt")
    [ids] = backbone.encode_prompts([prompt], 4)
    whole = [*backbone.head, *[backbone.image_token_id] * IMAGE_TOKENS, *ids]
    assert whole == found["input_ids"][0].tolist()
    assert whole.count(backbone.processor.tokenizer.bos_token_id) == 1
    assert found["token_type_ids"][0].tolist() == [
        int(token == backbone.image_token_id) for token in whole
    ]


def test_a_conversation_is_the_processors(backbone: Backbone) -> None:
    turns = [
        (backbone.prompts.chat.format(question=QUESTION), False),
        ("yes", True),
        (backbone.prompts.turn.format(question="And now?"), False),
        ("no", True),
    ]
    [(ids, labels)] = backbone.encode_segments([turns], 200)
    text = chat(QUESTION, "yes", "And now?", "no").rsplit("\n<start_of_turn>model", 1)[0]
    found = processor_of(backbone)(text=text, images=[pictures()[0]])["input_ids"][0]
    whole = [*backbone.head, *[backbone.image_token_id] * IMAGE_TOKENS, *ids, labels[-1]]
    assert whole == found


def test_pixels_are_the_processors(backbone: Backbone) -> None:
    found = processor_of(backbone)(
        text=[chat("")] * 5, images=[[image] for image in pictures()], return_tensors="pt"
    )
    torch.testing.assert_close(backbone.pixels(pictures())["pixel_values"], found["pixel_values"])


def decoded(backbone: Backbone) -> Tensor:
    texts = [ids for ids, _ in backbone.encode_captions(CAPTIONS, 20)]
    images = backbone.image_features(backbone.pixels(pictures()))
    with torch.no_grad():
        return backbone.decode(backbone.embed(images, texts))


def test_image_tokens_see_each_other(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the masks of its own the decoder runs and is wrong: that is what is guarded."""
    right = decoded(backbone)
    monkeypatch.setattr(type(backbone), "decoder_arguments", lambda *_: {})
    wrong = decoded(backbone)
    image = slice(len(backbone.head), len(backbone.head) + IMAGE_TOKENS)
    same = (right - wrong).abs().amax(dim=(0, 2)) < 1e-4
    assert same[: image.start].all(), "what is in front of the image never sees it"
    assert not same[image].any(), "the image itself"
    assert not same[image.stop : image.stop + 10].any(), "and what is behind it"


def test_texts_alone_are_causal(backbone: Backbone) -> None:
    """Without an image the masks are those that the decoder makes itself."""
    texts = [ids for ids, _ in backbone.encode_captions(CAPTIONS, 20)]
    inputs = backbone.embed_texts(texts)
    with torch.no_grad():
        expected = backbone.decoder(inputs_embeds=inputs.states, use_cache=False)
    torch.testing.assert_close(backbone.decode(inputs), expected.last_hidden_state)


def test_the_window_is_shorter_than_a_caption(backbone: Backbone) -> None:
    """The equalities tell a layer's kind only where windows cut something off."""
    right = decoded(backbone)
    backbone.text_config.sliding_window = 400
    assert not torch.allclose(decoded(backbone), right, atol=1e-2)


def test_text_is_scaled_and_images_are_not(backbone: Backbone) -> None:
    ids = torch.tensor([backbone.head])
    scale = backbone.hidden_size**0.5
    expected = backbone.decoder.embed_tokens.weight[ids] * scale
    torch.testing.assert_close(backbone.embed_ids(ids), expected)
    images = backbone.image_features(backbone.pixels(pictures()))
    with torch.no_grad():
        states = backbone.model.model.vision_tower(
            backbone.pixels(pictures())["pixel_values"]
        ).last_hidden_state
        tokens = backbone.model.model.multi_modal_projector(states)
    states = backbone.embed(images, [[]] * len(images)).states
    torch.testing.assert_close(states[:, len(backbone.head) :], tokens)


def test_generation_leaves_the_model_alone(backbone: Backbone) -> None:
    """The view that takes embeddings has the model's own layers, adapters on them included."""
    view = backbone.generator
    assert "prepare_inputs_for_generation" not in vars(backbone.model)
    assert view.get_submodule("model.language_model") is backbone.decoder
    backbone.decoder_layers[0].add_module("later", torch.nn.Identity())
    assert "model.language_model.layers.0.later" in dict(view.named_modules())


@pytest.fixture(scope="module")
def small() -> Backbone:
    settings = read_settings(SETTINGS, MiniGemma3Settings)
    torch.manual_seed(settings.seed)
    return settings.build(CORPUS)


def test_a_small_gemma_is_one_for_the_stock_classes(small: Backbone, tmp_path: Path) -> None:
    settings = read_settings(SETTINGS, MiniGemma3Settings)
    small.model.eval().save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    write_source(tmp_path, Source(prompts=settings.prompts))
    backbone = load_backbone(tmp_path)
    assert backbone.prompts == small.prompts
    assert backbone.eos_token_id == small.eos_token_id
    assert backbone.output_head.weight is backbone.decoder.embed_tokens.weight
    image_processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert image_processor.to_dict() == small.processor.image_processor.to_dict()
    text = f"{settings.prompts.head}{settings.prompts.caption}"
    processor = Gemma3Processor.from_pretrained(tmp_path)
    found = processor(text=text, images=[pictures()[0]])["input_ids"][0]
    image = backbone.image_token_id
    assert found.count(image) == settings.image_tokens
    # The real processor puts newlines around an image, which the small template leaves out.
    newline = processor.tokenizer.convert_tokens_to_ids("\u010a")
    placeholders = found.index(image), len(found) - found[::-1].index(image)
    before, behind = found[: placeholders[0]], found[placeholders[1] :]
    assert [token for token in before if token != newline] == [
        token for token in backbone.head if token != newline
    ]
    [prompt] = backbone.encode_prompts([backbone.prompts.caption], 4)
    assert behind[0] == prompt[0] and behind[-6:] == prompt[-6:]


def test_the_parts_of_a_small_gemmas_sight_are_all_of_it(small: Backbone) -> None:
    sight = MiniGemma3Settings.sight_of(small)
    pixels = small.pixels(pictures())
    with torch.no_grad():
        tokens = sight.project(sight.query(sight.see(pixels["pixel_values"])))
        expected = small.image_features(pixels).tokens
    torch.testing.assert_close(tokens.flatten(0, 1), expected)
    assert expected.std() > 0.3, "Hugging Face leaves the projector at zero"
    parts = {id(weight) for weight in [*sight.tower, *sight.querying, *sight.projecting]}
    model = small.model.model
    seeing = (model.vision_tower, model.multi_modal_projector)
    assert parts == {id(weight) for part in seeing for weight in part.parameters()}

"""Each family against plain transformers: states, losses, gradients and answers are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import gapinit
from gapinit.adapters.lora import add_lora
from gapinit.backbones.base import Backbone
from gapinit.backbones.generation import generate_tokens
from gapinit.backbones.tail import tail_loss
from gapinit.backbones.texts import Texts
from gapinit.errors import GapinitError
from gapinit.states.pooling import caption_positions, pool

from .backbone_cases import CAPTIONS, CASES, Case, World, pictures
from .small_backbone import randomise, trainable

MAX_TOKENS = 20
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def world(request: pytest.FixtureRequest, world_of: Callable[[Case], World]) -> World:
    return world_of(request.param)


def captions_of(backbone: Backbone) -> list[tuple[list[int], list[int]]]:
    return backbone.encode_captions(CAPTIONS, MAX_TOKENS)


def embedded(backbone: Backbone, texts: list[list[int]]) -> Any:
    images = backbone.image_features(backbone.pixels(pictures()[: len(texts)]))
    return backbone.embed(images, texts)


def layer_inputs_and_outputs(
    world: World, model: Any, inputs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the plain model's `hidden_states`, and what enters its final norm."""
    before: list[Tensor] = []
    handle = model.get_submodule(world.case.norm).register_forward_pre_hook(
        lambda _, given: before.append(given[0])
    )
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True, use_cache=False)
    handle.remove()
    # BLIP-2 has those of its language model one level down.
    hidden = getattr(found, "language_model_outputs", found).hidden_states
    return hidden, before[-1]


def test_states_are_the_plain_forward_passes(world: World) -> None:
    backbone, model = world.backbone(), world.stock()
    encoded = captions_of(backbone)
    rows = world.rows([ids for ids, _ in encoded])
    hidden, last = layer_inputs_and_outputs(world, model, world.inputs(model, rows))
    expected = [*hidden[1:-1], last]
    assert len(expected) == backbone.num_layers
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output))
        for layer in backbone.decoder_layers
    ]
    with torch.no_grad():
        inputs = embedded(backbone, [ids for ids, _ in encoded])
        final = backbone.decode(inputs)
    for handle in handles:
        handle.remove()
    assert inputs.length.tolist() == [len(row) for row in rows]
    for found, reference in zip([*outputs, final], [*expected, hidden[-1]], strict=True):
        for row, ids in enumerate(rows):
            torch.testing.assert_close(
                found[row, : len(ids)], reference[row, : len(ids)], rtol=1e-4, atol=1e-4
            )
    assert not torch.allclose(last[0], hidden[-1][0], atol=1e-3), "that entry is behind the norm"


def test_captions_are_pooled_where_they_stand(world: World) -> None:
    """The text state is the mean over the caption's own tokens: no template, no end, no padding."""
    backbone = world.backbone()
    encoded = captions_of(backbone)
    inputs = embedded(backbone, [ids for ids, _ in encoded])
    where = caption_positions(inputs, [labels for _, labels in encoded])
    space = " " if backbone.prompts.spaced else ""
    alone = backbone.texts.token_ids([f"{space}{caption}" for caption in CAPTIONS])
    rows = world.rows([ids for ids, _ in encoded])
    for row, tokens in enumerate(alone):
        kept = tokens[:MAX_TOKENS]
        chosen = [token for token, is_text in zip(rows[row], where[row], strict=False) if is_text]
        assert chosen == kept[: len(chosen)] and len(chosen) >= min(len(tokens), MAX_TOKENS - 1)
    with torch.no_grad():
        states = backbone.decode(inputs)
    expected = torch.stack([states[row][where[row]].mean(dim=0) for row in range(len(states))])
    torch.testing.assert_close(pool(states, where, "mean").float(), expected, rtol=1e-5, atol=1e-5)


def stock_labels(rows: list[list[int]], encoded: list[tuple[list[int], list[int]]]) -> Tensor:
    """Return labels as `forward` takes them: the learned tokens themselves, -100 elsewhere."""
    width = max(len(row) for row in rows)
    labels = torch.full((len(rows), width), -100)
    for row, (whole, (ids, found)) in enumerate(zip(rows, encoded, strict=True)):
        start = len(whole) - len(ids) - 1
        for place, label in enumerate(found):
            if label != -100:
                labels[row, start + place + 1] = label
    return labels


@pytest.mark.parametrize("first", [0, 1, 2])
def test_tail_loss_and_gradients_are_the_whole_models(world: World, first: int) -> None:
    backbone = world.backbone()
    layers = list(range(first, backbone.num_layers))
    encoded = captions_of(backbone)
    inputs = embedded(backbone, [ids for ids, _ in encoded])
    lower = world.backbone()
    lower.keep_below(first)
    with torch.no_grad():
        states = lower.decode(inputs) if first else inputs.states
    labels = torch.full(states.shape[:2], -100)
    for row, (start, (_, found)) in enumerate(
        zip(inputs.prefix_length.tolist(), encoded, strict=True)
    ):
        labels[row, start : start + len(found)] = torch.tensor(found)
    batch = {
        "states": states,
        "labels": labels,
        "prefix_length": inputs.prefix_length,
        "length": inputs.length,
        "grid": inputs.grid,
    }
    if inputs.memory is not None and inputs.memory_length is not None:
        batch |= {"memory": inputs.memory, "memory_length": inputs.memory_length}
    backbone.cut_below(first)
    tail = add_lora(backbone, layers, rank=2, alpha=4, dropout=0.0, init_lora_weights=True)
    randomise(tail)
    loss = tail_loss(backbone, batch)
    model = world.stock()
    names = [name for name in _targets(world, model, layers)]
    whole = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=names))
    randomise(whole)
    assert list(trainable(tail)) == list(trainable(whole)), "the full model's names"
    # The end of an answer is learned, and no position reads it: the whole model is fed with it.
    rows = world.rows([[*ids, found[-1]] for ids, found in encoded])
    expected = whole(
        **world.inputs(model, rows), labels=stock_labels(rows, encoded), use_cache=False
    ).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for name, value in trainable(whole).items():
        gradient = trainable(tail)[name].grad
        assert gradient is not None and value.grad is not None
        difference = torch.linalg.vector_norm(gradient - value.grad)
        assert difference <= 1e-5 * torch.linalg.vector_norm(value.grad) + 1e-9, name


def _targets(world: World, model: Any, layers: list[int]) -> Iterator[str]:
    names = {name for name, _ in model.named_modules()}
    for layer in layers:
        for module in world.case.modules:
            name = f"{world.case.layers}.{layer}.{module}"
            if name in names:
                yield name
            else:
                assert layer in world.case.outside, name


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_those_of_generate_on_pixels(world: World, num_beams: int) -> None:
    backbone, model = world.backbone(), world.stock()
    prompts = [backbone.prompts.caption, backbone.prompts.question.format(question="Is it red?")]
    prompts = [prompts[index % 2] for index in range(len(pictures()))]
    images = backbone.image_features(backbone.pixels(pictures()))
    tokens = generate_tokens(backbone, images, 12, num_beams, prompts)
    rows = world.rows(backbone.encode_prompts(prompts, 12))
    inputs = world.inputs(model, rows, side="left")
    expected = model.generate(
        **inputs,
        max_new_tokens=12,
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=backbone.stop_token_ids,
        pad_token_id=backbone.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    ended = (tokens == backbone.eos_token_id).any(dim=1)
    assert tokens.unique().numel() > 3 and not ended.all(), "answers that could differ"


def test_decoding_ends_where_the_model_ends(world: World) -> None:
    """The published models name several tokens that end a text; a zero-shot answer takes any."""
    backbone = world.backbone()
    assert backbone.stop_token_ids[0] == backbone.eos_token_id
    backbone.model.generation_config.eos_token_id = [7, backbone.eos_token_id, 9]
    assert set(backbone.stop_token_ids) >= {7, 9}
    assert len(set(backbone.stop_token_ids)) == len(backbone.stop_token_ids)


def test_batches_and_padding_change_nothing(world: World) -> None:
    backbone = world.backbone()
    encoded = [ids for ids, _ in captions_of(backbone)]
    images = backbone.image_features(backbone.pixels(pictures()))
    with torch.no_grad():
        together = backbone.decode(backbone.embed(images, encoded))
        for row, ids in enumerate(encoded):
            alone = backbone.image_features(backbone.pixels(pictures()[row : row + 1]))
            torch.testing.assert_close(
                alone.tokens, images.take([row]).tokens, rtol=1e-4, atol=1e-4
            )
            states = backbone.decode(backbone.embed(alone, [ids]))[0]
            torch.testing.assert_close(together[row, : len(states)], states, rtol=1e-4, atol=1e-4)
    answers = generate_tokens(backbone, images, 8, 1)
    for row in range(len(answers)):
        own = generate_tokens(backbone, images.take([row]), 8, 1)[0]
        end = (own == backbone.eos_token_id).nonzero()
        kept = own[: int(end[0]) + 1] if len(end) else own
        torch.testing.assert_close(answers[row, : len(kept)], kept, rtol=0, atol=0)


def test_images_have_as_many_tokens_as_is_said_beforehand(world: World) -> None:
    backbone = world.backbone()
    images = backbone.image_features(backbone.pixels(pictures()))
    assert images.counts.tolist() == [backbone.image_tokens(*image.size) for image in pictures()]
    assert len(images.tokens) == int(images.counts.sum())


def test_a_wrong_number_of_image_tokens_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = world.backbone()
    assert backbone.look(pictures()).counts.tolist()
    monkeypatch.setattr(type(backbone), "image_tokens", lambda *_: 1)
    with pytest.raises(GapinitError, match="one of them is wrong"):
        backbone.look(pictures())


def test_adapters_never_hit_the_vision_tower(world: World) -> None:
    backbone = world.backbone()
    names = {
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }

    def hit(**options: Any) -> set[str]:
        pattern = backbone.target_modules([1, 2], **options)
        return {name for name in names if re.fullmatch(pattern, name)}

    assert hit() == set(_targets(world, world.stock(), [1, 2]))
    eleventh = f"{world.case.layers}.11.{world.case.modules[0]}"
    assert re.fullmatch(backbone.target_modules([11]), eleventh)
    assert not re.fullmatch(backbone.target_modules([1]), eleventh)
    assert set(backbone.named_targets([1, 2])) == hit()
    both = hit(vision=True)
    assert both > hit() and set(world.case.vision_modules) <= both
    layers = {name for name in both - hit() if name.startswith(f"{world.case.layers}.")}
    assert not layers, "vision=True adds nothing to the language model"


def test_only_the_answer_is_learned(world: World) -> None:
    """Prompt, image and padding have no label; what is learned is the answer and its end."""
    backbone = world.backbone()
    prompt = backbone.prompts.question.format(question="Is it red?")
    [(ids, labels)] = backbone.encode_segments([[(prompt, False), ("red star", True)]], 60)
    [given] = backbone.encode_prompts([prompt], 4)
    assert ids[: len(given)] == given, "the same prompt in training and in decoding"
    assert labels[: len(given) - 1] == [-100] * (len(given) - 1)
    answer = [label for label in labels if label != -100]
    assert answer == [*ids[len(given) :], backbone.eos_token_id]
    assert backbone.processor.tokenizer.decode(answer[:-1]).strip() == "red star"
    first, second = "Is it red?", "And now?"
    turns = [
        (backbone.prompts.chat.format(question=first), False),
        ("yes", True),
        (backbone.prompts.turn.format(question=second), False),
        ("no", True),
    ]
    [(ids, labels)] = backbone.encode_segments([turns], 100)
    learned = [label for label in labels if label != -100]
    assert learned.count(backbone.eos_token_id) == 2 and labels[-1] == backbone.eos_token_id
    said = backbone.processor.tokenizer.decode([t for t in learned if t != backbone.eos_token_id])
    assert said.replace(" ", "") == "yesno"


def test_the_library_measures_and_points(world: World) -> None:
    """`estimate_gap` on the plain model is text mean less vision mean; B points along it."""
    backbone, model = world.backbone(), world.stock()
    pairs = list(zip(pictures(), CAPTIONS, strict=True))
    gap = gapinit.estimate_gap(model, backbone.processor, pairs, batch_size=2, progress=False)
    # Whole captions: the library cuts at the model's positions alone.
    encoded = backbone.encode_captions(CAPTIONS, backbone.text_positions or 100)
    inputs = embedded(backbone, [ids for ids, _ in encoded])
    text = caption_positions(inputs, [labels for _, labels in encoded])
    expected: list[Tensor] = []

    def keep(_module: Any, _given: Any, output: Tensor) -> None:
        seen, where = backbone.vision_states(inputs, output)
        sides = pool(output, text, "mean"), pool(seen, where, "mean")
        expected.append((sides[0] - sides[1]).mean(dim=0))

    handles = [layer.register_forward_hook(keep) for layer in backbone.decoder_layers]
    with torch.no_grad():
        backbone.decode(inputs)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(
        gap.vectors.double(), torch.stack(expected), rtol=1e-4, atol=1e-4, check_device=False
    )
    rows = world.inputs(model, world.rows([ids for ids, _ in encoded]))
    before = model(**rows).logits
    pattern = gapinit.target_modules(model, [1, 2])
    adapted = get_peft_model(model, LoraConfig(r=1, lora_alpha=2, target_modules=pattern))
    gapinit.initialize_lora_gap_weights(adapted, gap)
    torch.testing.assert_close(adapted(**rows).logits, before, rtol=1e-4, atol=1e-4)
    cosines = gapinit.alignment(adapted, gap)
    assert set(cosines) == set(_targets(world, world.stock(), [1, 2]))
    assert all(cosine == pytest.approx(1.0, abs=1e-5) for cosine in cosines.values())


def test_an_image_token_beyond_the_tokenizer_is_told(world: World) -> None:
    """A folder with the tokenizer of another model, whose vocabulary is smaller."""
    backbone = world.backbone()
    if not backbone.in_template:
        pytest.skip("no image token stands in this family's template")
    texts = Texts(
        backbone.processor.tokenizer,
        backbone.prompts,
        start=[],
        eos_token_id=backbone.eos_token_id,
        image_token_id=len(backbone.processor.tokenizer) + 7,
    )
    with pytest.raises(GapinitError, match="belongs to another model"):
        texts.encode_prompts([backbone.prompts.caption])

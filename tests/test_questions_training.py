"""Questions and conversations: trained on the answer alone, answered as the stock model answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from gapinit.adapters.lora import add_lora
from gapinit.backbones import load_backbone
from gapinit.backbones.prompts import most_common, training_texts
from gapinit.data.conversations import Conversation
from gapinit.data.dataset import prepare_dataset
from gapinit.data.images import load_image
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.data.questions import Question
from gapinit.errors import GapinitError
from gapinit.evaluate.predict import extract_features, predict
from gapinit.train.tail_module import Tail
from gapinit.train.trunk.write import extract_trunk, read_trunk

from .plain_json import write_json
from .small_backbone import make_backbone

MAX_TOKENS = 180
LAYERS = [1, 2]


@dataclass(frozen=True)
class Asking:
    """A random backbone with room for questions, and a few questions and conversations."""

    root: Path

    @property
    def backbone(self) -> Path:
        return self.root / "backbone"

    def manifest(self, layout: str) -> Path:
        return self.root / layout / "manifest.json"

    def data(self, layout: str) -> Manifest:
        return read_manifest(self.manifest(layout))

    def model(self) -> Blip2ForConditionalGeneration:
        model = Blip2ForConditionalGeneration.from_pretrained(self.backbone)
        return model.eval().requires_grad_(False)

    def processor(self) -> Blip2Processor:
        return Blip2Processor.from_pretrained(self.backbone)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    world = Asking(tmp_path_factory.mktemp("asking"))
    images = {"vqa": {"train": 6, "val": 5}, "pope": {"test": 12}, "llava": {"train": 5}}
    for layout, sizes in images.items():
        settings = world.root / f"{layout}.yaml"
        content = {"name": layout, "generator": "scenes", "layout": layout, "domain": "studio"}
        content |= {"seed": 3, "images": sizes, "questions_per_image": 2}
        settings.write_text(yaml.safe_dump(content), encoding="utf-8")
        prepare_dataset(settings, world.root / layout)
    texts = [sample.text for sample in world.data("vqa").split("train")]  # type: ignore[union-attr]
    make_backbone(world.backbone, [*texts, "Question: Short answer: yes no red"], max_positions=200)
    return world


def test_prompts_are_the_papers() -> None:
    prompts = load_prompts()
    question = Question(1, 2, Path("a.jpg"), "What is it?", ("b", "a", "a"), "", "", "", "train")
    assert training_texts(prompts, "vqa", question) == [
        [("Question: What is it? Short answer:", False), ("a", True)]
    ]
    talk = Conversation("1", Path("a.jpg"), 1, (("Who?", "He."), ("Why?", "So.")), "train")
    assert training_texts(prompts, "conversations", talk) == [
        [
            ("Question: Who? Short answer:", False),
            ("He.", True),
            ("Question: Why? Short answer:", False),
            ("So.", True),
        ]
    ]
    with pytest.raises(GapinitError, match="for evaluation"):
        training_texts(prompts, "pope", question)


def load_prompts() -> Any:
    from gapinit.backbones.blip2 import Blip2Backbone

    return Blip2Backbone.default_prompts


def test_the_answer_of_most_people_is_learned() -> None:
    assert most_common(("no", "yes", "yes")) == "yes"
    assert most_common(("red", "blue", "blue", "red")) == "red", "the first if several are even"


def pieces(processor: Blip2Processor, question: Question) -> tuple[list[int], list[int]]:
    """Return prompt and answer as token ids by the real tokenizer."""
    tokenizer = processor.tokenizer
    prompt = tokenizer(f"Question: {question.text} Short answer:", add_special_tokens=False)[
        "input_ids"
    ]
    answer = tokenizer(f" {most_common(question.answers)}", add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *prompt], [*answer, tokenizer.eos_token_id]


@pytest.mark.parametrize("first", [0, 1])
def test_loss_is_the_whole_models_on_the_answer_only(
    asking: Asking, first: int, tmp_path: Path
) -> None:
    write_json(tmp_path / "layers.json", {"naive": LAYERS if first else [0, *LAYERS]})
    extract_trunk(
        asking.backbone,
        asking.manifest("vqa"),
        tmp_path / "layers.json",
        "naive",
        tmp_path / "trunk.h5",
        max_tokens=MAX_TOKENS,
    )
    trunk = read_trunk(tmp_path / "trunk.h5")
    samples = asking.data("vqa").split("train")
    assert len(trunk) == len(samples) == 12 and len(trunk.prefix) == 6
    backbone = load_backbone(asking.backbone)
    if first:
        backbone.cut_below(first)
    else:
        backbone.drop_vision()
    model = add_lora(backbone, LAYERS, rank=1, alpha=2, dropout=0.0, init_lora_weights=True)
    found = Tail(model, backbone)(**trunk.batch([7]))["loss"].item()

    processor, question = asking.processor(), samples[7]
    assert isinstance(question, Question)
    prompt, answer = pieces(processor, question)
    ids = torch.tensor([[340] * 4 + prompt + answer])
    labels = ids.clone()
    labels[:, : 4 + len(prompt)] = -100
    pixels = processor(images=load_image(question.path), return_tensors="pt")["pixel_values"]
    expected = asking.model()(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
    ).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert (trunk.batch([7])["labels"] != -100).sum() == len(answer)


def test_a_conversation_is_learned_answer_by_answer(asking: Asking) -> None:
    backbone = load_backbone(asking.backbone)
    talk = asking.data("llava").split("train")[0]
    assert isinstance(talk, Conversation)
    (text,) = training_texts(backbone.prompts, "conversations", talk)
    ((ids, labels),) = backbone.encode_segments([text], MAX_TOKENS)
    eos = backbone.eos_token_id
    learned: list[list[int]] = [[]]
    for label in labels:
        if label != -100:
            learned[-1].append(label)
            if label == eos:
                learned.append([])
    said = [backbone.processor.tokenizer.decode(part[:-1]).strip() for part in learned[:-1]]
    assert said == [answer for _, answer in talk.turns]
    # An answer is predicted from what stands before it, and read again by what follows.
    assert [label for label in labels[:-1] if label != -100] == [
        token for token, label in zip(ids[1:], labels[:-1], strict=True) if label != -100
    ]


def test_a_prompt_that_leaves_no_room_is_named(asking: Asking, tmp_path: Path) -> None:
    write_json(tmp_path / "layers.json", {"naive": LAYERS})
    with pytest.raises(GapinitError, match=r"COCO_train.*more than 9 tokens"):
        extract_trunk(
            asking.backbone,
            asking.manifest("vqa"),
            tmp_path / "layers.json",
            "naive",
            tmp_path / "trunk.h5",
            max_tokens=9,
        )
    assert not (tmp_path / "trunk.h5").exists()


def stock_answer(asking: Asking, question: Question, model: Any, num_beams: int) -> str:
    """Return what stock `generate` answers to one question, from pixels."""
    processor = asking.processor()
    prompt, _ = pieces(processor, question)
    ids = torch.tensor([[340] * 4 + prompt])
    pixels = processor(images=load_image(question.path), return_tensors="pt")["pixel_values"]
    tokens: Tensor = model.generate(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=5,
        num_beams=num_beams,
        do_sample=False,
    )
    return str(processor.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize(("num_beams", "batch_size"), [(1, 4), (3, 64)])
def test_answers_are_those_of_stock_generate(
    asking: Asking, num_beams: int, batch_size: int, tmp_path: Path
) -> None:
    features, output = tmp_path / "features.h5", tmp_path / "p.json"
    extract_features(asking.backbone, asking.manifest("vqa"), features)
    options = {"num_beams": num_beams, "max_new_tokens": 5, "batch_size": batch_size}
    manifest = asking.manifest("vqa")
    predict(asking.backbone, manifest, features, None, output, **options)
    found = json.loads(output.read_text(encoding="utf-8"))
    samples = [item for item in asking.data("vqa").split("test") if isinstance(item, Question)]
    assert len({len(sample.text) for sample in samples}) > 2, "prompts differ in length"
    assert [set(entry) for entry in found] == [{"question_id", "answer"}] * len(samples)
    assert [entry["question_id"] for entry in found] == [item.question_id for item in samples]
    model = asking.model()
    expected = [stock_answer(asking, item, model, num_beams).strip() for item in samples]
    assert [entry["answer"] for entry in found] == expected
    assert len(set(expected)) > 3


def test_pope_answers_are_json_lines(asking: Asking, tmp_path: Path) -> None:
    features, output = tmp_path / "features.h5", tmp_path / "p.json"
    extract_features(asking.backbone, asking.manifest("pope"), features)
    predict(
        asking.backbone,
        asking.manifest("pope"),
        features,
        None,
        output,
        num_beams=1,
        max_new_tokens=3,
        batch_size=8,
    )
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    samples = asking.data("pope").split("test")
    assert [(line["category"], line["question_id"]) for line in lines] == [
        (sample.category, sample.question_id) for sample in samples if isinstance(sample, Question)
    ]
    assert [line["category"] for line in lines] == sorted(
        (line["category"] for line in lines), key=("random", "popular", "adversarial").index
    )


def test_features_of_another_dataset_are_refused(asking: Asking, tmp_path: Path) -> None:
    features = tmp_path / "features.h5"
    extract_features(asking.backbone, asking.manifest("pope"), features)
    with pytest.raises(GapinitError, match="made from another manifest"):
        predict(
            asking.backbone,
            asking.manifest("vqa"),
            features,
            None,
            tmp_path / "p.json",
            num_beams=1,
            max_new_tokens=3,
            batch_size=8,
        )

"""Backbones: text encoding, adapted modules, fingerprints, what is refused, pretraining."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Blip2Processor

from gapinit.backbones import PRETRAINED, load_backbone, make_backbone
from gapinit.backbones import fingerprint as fingerprints
from gapinit.backbones.blip2 import Blip2Backbone
from gapinit.backbones.fingerprint import backbone_digest
from gapinit.backbones.generation import generate
from gapinit.backbones.hub import HubSettings
from gapinit.backbones.inputs import Images
from gapinit.config.yaml_files import read_settings
from gapinit.data.dataset import prepare_dataset
from gapinit.data.images import load_image
from gapinit.errors import GapinitError

from .plain_json import forget_digests
from .small_backbone import BACKBONE, SmallWorld, reference_inputs, small_world

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<image>")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def backbone(world: SmallWorld) -> Blip2Backbone:
    return load_backbone(world.backbone)


@pytest.fixture(scope="module")
def tokenizer(world: SmallWorld) -> Any:
    return world.stock_processor().tokenizer


@pytest.fixture
def copy(world: SmallWorld, tmp_path: Path) -> Path:
    """A copy of the backbone's folder, to be damaged."""
    return Path(shutil.copytree(world.backbone, tmp_path / "copy"))


@given(text=st.text(max_size=40).filter(lambda text: not any(s in text for s in SPECIAL)))
@example(text="a dog 's ball , it is n't red .")
@example(text="Zürich 東京 \U0001f600 \x00 \u202e ")
def test_any_text_survives_its_encoding(text: str, tokenizer: Any) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) in (text, " " + text)  # byte-level BPE may begin with a space


def test_encoding_is_the_real_processors(world: SmallWorld, backbone: Blip2Backbone) -> None:
    processor = world.stock_processor()
    image = world.images("train")[0]
    for caption in image.captions:
        expected = reference_inputs(processor, image, caption)["input_ids"][0].tolist()
        assert expected[: backbone.image_tokens(1, 1)] == [340] * backbone.image_tokens(1, 1)
        text = expected[backbone.image_tokens(1, 1) :]
        assert [ids for ids, _ in backbone.encode_captions([caption], 50)] == [text]
        assert [ids for ids, _ in backbone.encode_captions([caption], 7)] == [text[:7]]


def test_stock_processor_reads_the_folder(world: SmallWorld, backbone: Blip2Backbone) -> None:
    processor = world.stock_processor()
    assert isinstance(processor, Blip2Processor)
    assert processor.num_query_tokens == backbone.image_tokens(1, 1)
    images = [load_image(image.path) for image in world.images("test")]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(backbone.pixels(images)["pixel_values"], expected, rtol=0, atol=0)
    assert not list(world.backbone.glob("*.bin")) and not list(world.backbone.glob("*.pt"))


def test_no_room_for_the_text(backbone: Blip2Backbone) -> None:
    assert backbone.encode_captions(["a"], 56)
    with pytest.raises(GapinitError, match="max_caption_tokens: 57 .* 60 positions.*at most 56"):
        backbone.encode_captions(["a"], 57)
    features = Images.equal(torch.zeros(1, 4, 32))
    with pytest.raises(GapinitError, match="max_new_tokens: 57 "):
        generate(backbone, features, max_new_tokens=57, num_beams=1)


def test_fingerprint_sees_every_weight(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    monkeypatch.setattr(fingerprints, "READ_WHOLE", 1000)
    monkeypatch.setattr(fingerprints, "TENSOR_WINDOW", 16)
    seen = {backbone_digest(copy)}
    assert seen == {backbone_digest(copy)}
    for name, weight in weights.items():
        for place in {0, weight.numel() - 1}:
            changed = weight.clone()
            changed.view(-1)[place] += 1e-3
            save_file(weights | {name: changed}, file, metadata={"format": "pt"})
            seen.add(backbone_digest(copy))
    sizes = sum(1 if weight.numel() == 1 else 2 for weight in weights.values())
    assert len(seen) == 1 + sizes


def test_fingerprint_of_config_and_folder(copy: Path, world: SmallWorld) -> None:
    assert backbone_digest(copy) == backbone_digest(world.backbone), "the path does not count"
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["activation_function"] = "gelu"
    (copy / "config.json").write_text(json.dumps(config))
    assert backbone_digest(copy) != backbone_digest(world.backbone)
    (copy / "model.safetensors").unlink()
    with pytest.raises(GapinitError, match="no backbone here"):
        backbone_digest(copy)


def test_fingerprint_of_a_large_file_that_is_no_safetensors(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "READ_WHOLE", 1000)
    (copy / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(GapinitError, match="model.safetensors: not a safetensors file"):
        backbone_digest(copy)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_refused_models(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match=r"nowhere.config.json: no such file"):
        load_backbone(tmp_path / "nowhere")
    change_config(copy, model_type="vipllava")
    with pytest.raises(GapinitError, match="'vipllava' is not supported, expected one of: blip-2"):
        load_backbone(copy)


def test_t5_is_refused_before_its_weights_are_read(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    change_config(copy, model_type="blip-2", text_config={"model_type": "t5"})
    with pytest.raises(GapinitError, match="'t5', expected 'opt'"):
        load_backbone(copy)


def test_damaged_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights["language_projection.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(GapinitError, match="lack 1 tensors.*'language_projection.weight'"):
        load_backbone(copy)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(GapinitError, match="cannot be loaded"):
        load_backbone(copy)
    file.rename(copy / "pytorch_model.bin")
    with pytest.raises(GapinitError, match="pickled weights are never loaded"):
        load_backbone(copy)


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("processor_config.json", ("image_processor", "image_mean"), "grey"),
        ("processor_config.json", ("image_processor", "size", "height"), 1.5),
        ("tokenizer_config.json", ("model_max_length",), "many"),
        ("tokenizer.json", ("model", "continuing_subword_prefix"), "##"),  # stops within Rust
    ],
)
def test_a_damaged_tokenizer_or_image_processor(
    copy: Path, name: str, keys: tuple[str, ...], value: object
) -> None:
    path = copy / name
    forget_digests(path)
    content = place = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(GapinitError, match="this backbone cannot be loaded"):
        load_backbone(copy)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretraining folder, with the settings of a tiny backbone beside it."""
    folder = tmp_path_factory.mktemp("pretraining")
    content = {
        "name": "tiny-pretraining",
        "generator": "scenes",
        "layout": "pretraining",
        "domain": "mixed",
        "seed": 3,
        "images": {"train": 10},
        "corpus_lines": 40,
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    prepare_dataset(folder / "data.yaml", folder / "data")
    (folder / "backbone.yaml").write_text(yaml.safe_dump(BACKBONE))
    return folder


@pytest.mark.parametrize("name", ["mini-blip2-test", "mini-qwen2-vl-test", "mini-gemma3-test"])
def test_pretraining_is_deterministic(
    name: str, pretraining: Path, tmp_path: Path, repository: Path
) -> None:
    content = yaml.safe_load((repository / "config" / "backbones" / f"{name}.yaml").read_text())
    short = {"steps": 2, "batch_size": 4, "text_every": 1}
    for key in ("language", "vision", "qformer", "merger", "projector", "alignment"):
        if key in content:
            content[key] |= short
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        settings = tmp_path / f"{folder}.yaml"
        settings.write_text(yaml.safe_dump(content | {"seed": seed}))
        make_backbone(settings, pretraining / "data", tmp_path / folder, threads=1)
        torch.manual_seed(99)  # whatever ran before
    for file in sorted(path.name for path in (tmp_path / "one").iterdir()):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert backbone_digest(tmp_path / "one") != backbone_digest(tmp_path / "three")
    backbone = load_backbone(tmp_path / "one")
    assert all(torch.isfinite(weight).all() for weight in backbone.model.parameters())
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert not backbone.model.training


def test_pretraining_names_what_is_wrong(pretraining: Path, tmp_path: Path) -> None:
    settings = tmp_path / "backbone.yaml"
    settings.write_text(yaml.safe_dump(BACKBONE | {"family": "mega-blip2"}))
    with pytest.raises(GapinitError, match="key 'family': unknown family 'mega-blip2'"):
        make_backbone(settings, pretraining / "data", tmp_path / "out", threads=1)
    high = {"steps": 3, "batch_size": 4, "learning_rate": 1e30, "warmup_steps": 1}
    settings.write_text(yaml.safe_dump(BACKBONE | {"language": high}))
    with pytest.raises(GapinitError, match="language modelling: the loss is not finite at step"):
        make_backbone(settings, pretraining / "data", tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_every_backbone_file_is_one_of_its_family(repository: Path) -> None:
    """Placeholders in a question, a dtype that does not exist: told here, not after a download."""
    files = sorted((repository / "config" / "backbones").glob("*.yaml"))
    assert len(files) >= 12
    for path in files:
        family = yaml.safe_load(path.read_text())["family"]
        if family == "hub":
            settings: Any = read_settings(path, HubSettings)
        else:
            module, name = PRETRAINED[family]
            settings = read_settings(path, getattr(import_module(module), name))
        assert settings.name == path.stem
        for key in ("question", "chat", "turn"):
            given = getattr(settings.prompts, key)
            assert given is None or "{question}" in given, f"{path}: {key}"


def test_a_backbones_dtype_and_prompts_go_with_its_folder(
    world: SmallWorld, tmp_path: Path
) -> None:
    content = {
        "name": "mine",
        "family": "hub",
        "repository": "me/mine",
        "folder": str(world.backbone),
        "dtype": "bfloat16",
        "prompts": {"caption": "a photo of", "question": "Q: {question} A:"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    make_backbone(tmp_path / "mine.yaml", None, tmp_path / "mine", threads=1)
    mine, plain = load_backbone(tmp_path / "mine"), load_backbone(world.backbone)
    assert (mine.model.dtype, plain.model.dtype) == (torch.bfloat16, torch.float32)
    assert mine.prompts.caption == "a photo of" and plain.prompts.caption == ""
    assert mine.prompts.turn == plain.prompts.turn, "what is not said stays the family's"
    [(ids, labels)] = mine.encode_captions(["a dog"], 20)
    [prompt] = mine.encode_prompts(["a photo of"], 4)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt) - 1] == [-100] * (len(prompt) - 1)
    assert backbone_digest(tmp_path / "mine") != backbone_digest(world.backbone), "other states"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | {"dtype": "int3"}))
    with pytest.raises(GapinitError, match="key 'dtype'.*found 'int3'"):
        make_backbone(tmp_path / "mine.yaml", None, tmp_path / "again", threads=1)
    lost = {"prompts": {"turn": "Q: {frage} A:"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | lost))
    with pytest.raises(GapinitError, match="key 'prompts.turn': .*{question}"):
        make_backbone(tmp_path / "mine.yaml", None, tmp_path / "again", threads=1)

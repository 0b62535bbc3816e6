"""Predictions: those of the whole model on pixels, token for token, from cached features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from typer.testing import CliRunner

from gapinit.backbones import load_backbone
from gapinit.backbones.generation import generate
from gapinit.backbones.inputs import Images
from gapinit.backbones.source import Source, write_source
from gapinit.cli import app
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.evaluate.predict import Questions, extract_features, predict_several
from gapinit.evaluate.predict import predict as predict_split

from .small_backbone import SmallWorld, make_backbone, small_world

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NEW_TOKENS = 14
DECODING: dict[str, Any] = {"num_beams": 1, "max_new_tokens": NEW_TOKENS, "batch_size": 3}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def features(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("features") / "test.h5"
    extract_features(world.backbone, world.manifest, output, batch_size=2)
    return output


@pytest.fixture(scope="module")
def adapter(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world.train(tmp_path_factory.mktemp("run") / "run", learning_rate=2e-2, batch_size=8)
    return folder / "adapter"


def images_in(features: Path) -> Images:
    with h5py.File(features) as file:
        found = (torch.from_numpy(file[name][:]) for name in ("features", "counts", "grid"))
        return Images(*found)


def tokens_from_pixels(world: SmallWorld, model: Any, num_beams: int) -> list[list[int]]:
    """Return what stock `generate` writes behind the prompt, one image at a time."""
    processor = world.stock_processor()
    found = []
    for image in world.images("test"):
        inputs = processor(images=load_image(image.path), return_tensors="pt")
        tokens = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, num_beams=num_beams, do_sample=False
        )
        prompt = [340] * 4 + [processor.tokenizer.bos_token_id]
        assert tokens[0, :5].tolist() == prompt
        found.append(tokens[0, 5:].tolist())
    return found


@pytest.mark.parametrize(("num_beams", "batch_size"), [(1, 3), (3, 3), (3, 64)])
def test_tokens_are_those_of_generate_on_pixels(
    world: SmallWorld, features: Path, num_beams: int, batch_size: int, monkeypatch: Any
) -> None:
    expected = tokens_from_pixels(world, world.stock_model(), num_beams)
    backbone = load_backbone(world.backbone)
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "images tell apart"
    ended = [tokens[-1] == backbone.eos_token_id for tokens in expected]
    assert any(ended) and not all(ended), "some sentences end early, so that batches are padded"
    found: list[list[int]] = []
    decode = backbone.processor.tokenizer.batch_decode

    def keep(tokens: torch.Tensor, **options: Any) -> list[str]:
        for row in tokens.tolist():
            end = row.index(backbone.pad_token_id) if backbone.pad_token_id in row else len(row)
            found.append(row[:end])
        return decode(tokens, **options)

    monkeypatch.setattr(backbone.processor.tokenizer, "batch_decode", keep)
    images = images_in(features)
    for block in torch.arange(len(images)).split(batch_size):
        generate(backbone, images.take(block), max_new_tokens=NEW_TOKENS, num_beams=num_beams)
    assert found == expected


def test_features_are_those_of_the_whole_model(world: SmallWorld, features: Path) -> None:
    images = world.images("test")
    pixels = world.stock_processor()(
        images=[load_image(image.path) for image in images], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        expected = world.stock_model().get_image_features(pixels).pooler_output
    with h5py.File(features) as file:
        found = torch.from_numpy(file["features"][:])
        names = [image.path.relative_to(world.manifest.parent).as_posix() for image in images]
        assert file["image"].asstr()[:].tolist() == names
    assert images_in(features).counts.tolist() == [4] * len(images)
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-4, atol=1e-5)


def predict(world: SmallWorld, features: Path, adapter: Path | None, output: Path) -> Any:
    predict_split(world.backbone, world.manifest, features, adapter, output, **DECODING)
    return json.loads(output.read_text(encoding="utf-8"))


def captions_from_pixels(world: SmallWorld, model: Any, num_beams: int) -> list[str]:
    tokens = tokens_from_pixels(world, model, num_beams)
    texts = world.stock_processor().batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def test_results_are_in_cocos_format(world: SmallWorld, features: Path, tmp_path: Path) -> None:
    found = predict(world, features, None, tmp_path / "p.json")
    expected = captions_from_pixels(world, world.stock_model(), 1)
    assert found == [
        {"image_id": image.image_id, "caption": text}
        for image, text in zip(world.images("test"), expected, strict=True)
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_adapter_captions_as_stock_peft_does(
    world: SmallWorld, features: Path, adapter: Path, num_beams: int, tmp_path: Path
) -> None:
    output = tmp_path / "p.json"
    options = DECODING | {"num_beams": num_beams}
    predict_split(world.backbone, world.manifest, features, adapter, output, **options)
    found = [entry["caption"] for entry in json.loads(output.read_text(encoding="utf-8"))]
    model = PeftModel.from_pretrained(world.stock_model(), adapter)
    assert found == captions_from_pixels(world, model, num_beams)
    assert found != captions_from_pixels(world, world.stock_model(), num_beams)


def test_what_is_refused(world: SmallWorld, features: Path, adapter: Path, tmp_path: Path) -> None:
    captions = [text for image in world.images("train") for text in image.captions]
    make_backbone(tmp_path / "other", captions, seed=77)
    output = tmp_path / "p.json"
    with pytest.raises(GapinitError, match=r"test.h5: made from another backbone"):
        predict_split(tmp_path / "other", world.manifest, features, None, output, **DECODING)
    with pytest.raises(GapinitError, match="expected an HDF5 file of kind 'features'"):
        predict_split(world.backbone, world.manifest, world.states, None, output, **DECODING)
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(GapinitError, match=r"adapter_config.json: not valid JSON"):
        predict_split(
            world.backbone, world.manifest, features, tmp_path / "adapter", output, **DECODING
        )
    with pytest.raises(GapinitError, match="no split 'dev'"):
        extract_features(world.backbone, world.manifest, tmp_path / "f.h5", split="dev")
    outputs = [[tmp_path / "a.json"], [output]]
    asked = [Questions(world.manifest, features, NEW_TOKENS)]
    with pytest.raises(GapinitError, match="no such file .expected a PEFT adapter folder"):
        predict_several(
            world.backbone, asked, [adapter, tmp_path], outputs, num_beams=1, batch_size=3
        )
    assert not list(tmp_path.glob("*.json")) and not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(("dtype", "merges"), [("float32", 1), ("bfloat16", 0)])
def test_half_precision_keeps_the_adapter_beside_the_weights(
    world: SmallWorld,
    adapter: Path,
    dtype: Any,
    merges: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounded to 8 bits, a merged weight loses most of a rank-1 update."""
    folder = Path(shutil.copytree(world.backbone, tmp_path / "backbone"))
    write_source(folder, Source(dtype=dtype))
    features = tmp_path / "features.h5"
    extract_features(folder, world.manifest, features)
    merged: list[bool] = []
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda *_, **__: merged.append(True))
    predict_split(folder, world.manifest, features, adapter, tmp_path / "with.json", **DECODING)
    assert len(merged) == merges
    predict_split(folder, world.manifest, features, None, tmp_path / "without.json", **DECODING)
    found = [(tmp_path / name).read_bytes() for name in ("with.json", "without.json")]
    assert found[0] != found[1], "the adapter is at work either way"


def test_several_adapters_answer_as_each_alone(
    world: SmallWorld, features: Path, adapter: Path, tmp_path: Path
) -> None:
    """One model, one adapter after the other: each file byte for byte that of a single call."""
    adapters: list[Path | None] = [adapter, None]
    # DoRA has a third tensor a module, LoftQ lays its own base weights, PiSSA doubles the rank.
    for method, rank in (("dora", 1), ("loftq", 8), ("pissa", 1)):
        folder = world.train(tmp_path / method, method, rank=rank, learning_rate=2e-2, batch_size=8)
        adapters.append(folder / "adapter")
    adapters.append(adapter)
    alone = []
    for number, one in enumerate(adapters):
        output = tmp_path / f"alone{number}.json"
        predict_split(world.backbone, world.manifest, features, one, output, **DECODING)
        alone.append(output.read_bytes())
    assert len(set(alone)) == len(adapters) - 1, "adapters differ"
    outputs = [[tmp_path / f"{number}-{n}.json" for n in (0, 1)] for number in range(len(adapters))]
    asked = [Questions(world.manifest, features, tokens) for tokens in (NEW_TOKENS, 2)]
    options = {name: value for name, value in DECODING.items() if name != "max_new_tokens"}
    predict_several(world.backbone, asked, adapters, outputs, **options)
    assert [first.read_bytes() for first, _ in outputs] == alone
    assert all(
        len(short.read_bytes()) < len(long) for (_, short), long in zip(outputs, alone, strict=True)
    )


def test_the_command_takes_several(world: SmallWorld, features: Path, tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        head = ["predict", "--backbone", str(world.backbone), "--device", "cpu"]
        return CliRunner().invoke(app, [*head, *options])

    asked = [f"--manifest={world.manifest}", f"--features={features}"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    done = run(*asked, *asked, f"--output={one}", f"--output={two}", "--max-new-tokens=14")
    assert done.exit_code == 0, done.output
    assert one.read_bytes() == two.read_bytes()
    for wrong, message in (
        ([*asked, asked[0], f"--output={one}"], "--features: given 1 times, expected 2"),
        ([*asked, *asked, f"--output={one}"], "--output: given 1 times, expected 2"),
    ):
        assert message in str(run(*wrong).exception)

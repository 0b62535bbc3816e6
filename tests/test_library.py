"""`estimate_gap` and `GapVectors`: equal to plain forward passes, one pair at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

import gapinit
from gapinit.backbones.weights_fingerprint import model_fingerprint
from gapinit.gap.gap_vectors import GapVectors

from .small_library import (
    LAYERS,
    WIDTH,
    Reference,
    SmallLibrary,
    hooks_of,
    weights_of,
)

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
FC1 = "language_model.model.decoder.layers.1.fc1"


@pytest.fixture(scope="module")
def gap(library: SmallLibrary) -> GapVectors:
    return estimate(library, library.model(), batch_size=3)


def estimate(library: SmallLibrary, model: Any, pairs: Any = None, **options: Any) -> GapVectors:
    pairs = library.pairs if pairs is None else pairs
    options = {"progress": False} | options
    return gapinit.estimate_gap(model, library.processor(), pairs, **options)


def with_lora(model: Any, **options: Any) -> Any:
    options = {"target_modules": ["q_proj", "fc1"]} | options
    return get_peft_model(model, LoraConfig(**options))


def randomise_adapters(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_()


def test_gaps_are_those_of_plain_forward_passes(gap: GapVectors, expected: Reference) -> None:
    assert gap.layers == (0, 1, 2) and gap.num_layers == LAYERS and gap.pairs == 7
    assert gap.vectors.shape == (LAYERS, WIDTH) and gap.vectors.dtype == torch.float64
    torch.testing.assert_close(gap.vectors, expected.gaps, **CLOSE)
    assert gap.modules.keys() == expected.modules.keys() and len(gap.modules) == 6 * LAYERS
    for name, module in gap.modules.items():
        assert f".layers.{module.layer}." in name
        torch.testing.assert_close(module.vector, expected.module_gap(name), **CLOSE)
    assert gap.modules[FC1].vector.shape != (WIDTH,)


@pytest.mark.parametrize("neighbours", [None, 2])
def test_smoothing_scores_and_spectrum(
    library: SmallLibrary, expected: Reference, neighbours: int | None
) -> None:
    gap = estimate(library, library.model(), neighbours=neighbours)
    assert gap.neighbours == neighbours
    for layer in range(LAYERS):
        vision, text = expected.layers[layer, :, 0].numpy(), expected.layers[layer, :, 1].numpy()
        smoothed = gapinit.gap_vector(text, vision, neighbours=neighbours)
        np.testing.assert_allclose(gap.vectors[layer], smoothed, **CLOSE)
        score = gapinit.spot_gap(text, vision, neighbours=neighbours or 6).score
        assert float(gap.spot_scores[layer]) == pytest.approx(score, rel=1e-5)
        differences = text - vision
        values = np.linalg.svd(differences, compute_uv=False)
        centred = np.linalg.svd(differences - differences.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(gap.spectrum.singular_values[layer], values, **CLOSE)
        np.testing.assert_allclose(
            gap.spectrum.singular_values_centred[layer], centred, rtol=1e-5, atol=1e-4
        )
    if neighbours:
        assert not torch.allclose(gap.vectors, expected.gaps, atol=1e-3)


def test_last_pooling(library: SmallLibrary, gap: GapVectors) -> None:
    model, processor = library.model(), library.processor()
    last = estimate(library, model, pooling="last")
    outputs: list[torch.Tensor] = []
    layer = model.language_model.model.decoder.layers[2]
    handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    gaps = []
    for image, caption in library.pairs:
        with torch.no_grad():
            model(**processor(images=image, text=caption, return_tensors="pt"))
        gaps.append((outputs[-1][0, -1] - outputs[-1][0, 3]).double())
    handle.remove()
    torch.testing.assert_close(last.vectors[2], torch.stack(gaps).mean(dim=0), **CLOSE)
    assert last.pooling == "last" and not torch.allclose(last.vectors, gap.vectors)


def test_paths_generators_and_batches_change_nothing(
    library: SmallLibrary, gap: GapVectors, tmp_path: Path
) -> None:
    def pairs() -> Iterator[tuple[Any, str]]:
        for index, (image, caption) in enumerate(library.pairs):
            path = tmp_path / f"{index}.png"
            image.save(path)
            yield [path, str(path), image][index % 3], caption

    for size in (1, 4, 100):
        found = estimate(library, library.model(), pairs(), batch_size=size)
        torch.testing.assert_close(found.vectors, gap.vectors, **CLOSE)


def test_some_layers_only(library: SmallLibrary, gap: GapVectors) -> None:
    some = estimate(library, library.model(), layers=[2, 0])
    assert some.layers == (0, 2) and {one.layer for one in some.modules.values()} == {0, 2}
    torch.testing.assert_close(some.vectors, gap.vectors[[0, 2]], **CLOSE)
    torch.testing.assert_close(some.spot_scores, gap.spot_scores[[0, 2]], **CLOSE)
    with pytest.raises(gapinit.GapinitError, match="decoder layer 1: the gap covers only.* 0, 2"):
        some.vector(1)


def test_a_peft_model_is_measured_without_its_adapters(
    library: SmallLibrary, gap: GapVectors
) -> None:
    model = with_lora(library.model(), target_modules=".*(q_proj|fc1|qkv|fc2)")
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"]))
    randomise_adapters(model)
    found = estimate(library, model)
    torch.testing.assert_close(found.vectors, gap.vectors, **CLOSE)
    assert found.modules.keys() == gap.modules.keys()
    assert found.fingerprint.compare(gap.fingerprint).difference is None


def test_the_model_is_left_as_it_was(library: SmallLibrary) -> None:
    model = with_lora(library.model().train(), lora_dropout=0.3, modules_to_save=["lm_head"])
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"]))
    randomise_adapters(model)
    model.base_model.model.vision_model.eval()
    frozen = next(value for name, value in model.named_parameters() if "lora_A.default" in name)
    frozen.requires_grad_(False)  # enabling adapters would turn it on again
    calls: list[int] = []
    for layer in model.base_model.model.language_model.model.decoder.layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
        layer.register_forward_pre_hook(lambda *_: calls.append(2))
    before = weights_of(model), hooks_of(model)
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    active = [
        module.disable_adapters for module in model.modules() if hasattr(module, "disable_adapters")
    ]
    for pairs in (library.pairs, [*library.pairs[:2], (library.pairs[0][0], " ")]):
        calls.clear()
        try:
            estimate(library, model, pairs, batch_size=1)
        except gapinit.GapinitError:
            assert len(pairs) == 3
        assert calls, "hooks of others are called"
        assert hooks_of(model) == before[1]
        assert {name: value.requires_grad for name, value in model.named_parameters()} == flags
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert [
            one.disable_adapters for one in model.modules() if hasattr(one, "disable_adapters")
        ] == active
        for name, value in weights_of(model).items():
            assert torch.equal(value, before[0][name]), name
    assert torch.is_grad_enabled()


def test_adapters_that_were_off_stay_off(library: SmallLibrary) -> None:
    model = with_lora(library.model())
    with model.disable_adapter():
        estimate(library, model, library.pairs[:2])
        assert all(m.disable_adapters for m in model.modules() if hasattr(m, "disable_adapters"))


def test_a_half_precision_model(library: SmallLibrary, gap: GapVectors) -> None:
    found = estimate(library, library.model(dtype=torch.bfloat16))
    cosine = torch.cosine_similarity(found.vectors, gap.vectors, dim=1)
    assert found.vectors.dtype == torch.float64 and cosine.min() > 0.995
    assert found.fingerprint.compare(gap.fingerprint).difference is None


def image() -> Image.Image:
    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs: expected at least 2, found 0"),
        ([(image(), "one")], "pairs: expected at least 2, found 1"),
        ([(image(), "one"), (image(), " \n")], r"pairs\[1\]: expected a caption, found ' "),
        ([(image(), "one"), (image(), None)], r"pairs\[1\]: expected a caption, found None"),
        ([(Image.new("RGB", (1800, 8)), "one")], r"pairs\[0\]: too narrow: 1800 x 8"),
        ([(image(), "one"), (Image.new("RGB", (9, 1)), "two")], r"pairs\[1\]: too small"),
        ([("missing.png", "one")], r"pairs\[0\]: .*missing.png: no such image"),
        ([(__file__, "one")], r"pairs\[0\]: .*test_library.py: damaged or unreadable image"),
        ([(np.zeros((8, 8, 3)), "one")], r"pairs\[0\]: expected a PIL image or a path.*ndarray"),
        (["ab"], r"pairs\[0\]: expected \(image, caption\), found str"),
    ],
)
def test_pairs_that_cannot_be_measured(library: SmallLibrary, pairs: Any, message: str) -> None:
    with pytest.raises(gapinit.GapinitError, match=message):
        estimate(library, library.model(), pairs)


def test_a_truncated_image_is_named(library: SmallLibrary, tmp_path: Path) -> None:
    path = tmp_path / "whole.png"
    library.pairs[0][0].save(path)
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:200])
    with Image.open(tmp_path / "cut.png") as cut:
        for item in (cut, tmp_path / "cut.png"):
            pairs = [library.pairs[0], library.pairs[1], (item, "a star")]
            with pytest.raises(gapinit.GapinitError, match=r"pairs\[2\]: .*unreadable image"):
                estimate(library, library.model(), pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, r"layers: expected decoder layers from 0 to 2, found \[\]"),
        ({"layers": [3]}, r"layers: .*found \[3\]"),
        ({"pooling": "max"}, "pooling: expected one of mean, last, found 'max'"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, found 0"),
        ({"neighbours": 0}, "neighbours: expected a whole number of at least 1, found 0"),
        ({"neighbours": 7}, "neighbours: 7 neighbours asked for.*at most 6"),
    ],
)
def test_options_that_make_no_sense(
    library: SmallLibrary, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(gapinit.GapinitError, match=message):
        estimate(library, library.model(), **options)


@pytest.mark.parametrize("row", [0, 4])
def test_a_state_that_is_not_finite_is_named(library: SmallLibrary, row: int) -> None:
    model = library.model()
    seen: list[int] = []

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        start = sum(seen)
        seen.append(len(output))
        if start <= row < start + len(output):
            output = output.clone()
            output[row - start, 2] = float("nan")
        return output

    model.language_model.model.decoder.layers[1].register_forward_hook(spoil)
    with pytest.raises(gapinit.GapinitError) as error:
        estimate(library, model, batch_size=3)
    assert f"pairs[{row}]: the vision state of decoder layer 1 is not finite" in str(error.value)


def test_models_and_processors_of_other_classes(library: SmallLibrary) -> None:
    model, processor = library.model(), library.processor()
    expected = r"Blip2ForConditionalGeneration \('blip-2'\).*; or a PeftModel"
    for other, found in (
        (model.language_model, r"model: OPTForCausalLM \(model type 'opt'\)"),
        (model.vision_model, "model: Blip2VisionModel"),
        (torch.nn.Linear(2, 2), r"model: Linear \(model type None\)"),
    ):
        with pytest.raises(gapinit.GapinitError, match=f"{found}.* is not supported.*{expected}"):
            gapinit.estimate_gap(other, processor, library.pairs)
    for other_processor, found in ((processor.tokenizer, "Tokenizer"), (None, "None")):
        with pytest.raises(gapinit.GapinitError, match=f"processor: expected .*found .*{found}"):
            gapinit.estimate_gap(model, other_processor, library.pairs)


def test_a_merged_adapter_is_refused(library: SmallLibrary) -> None:
    model = with_lora(library.model())
    model.merge_adapter()
    with pytest.raises(gapinit.GapinitError, match="merged into the weights.*unmerge_adapter"):
        estimate(library, model)


def test_progress_is_told(
    library: SmallLibrary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gapinit.progress.SECONDS_BETWEEN_LINES", -1.0)
    estimate(library, library.model(), batch_size=3, progress=True)
    assert "gap: 1 of 3" in capsys.readouterr().err
    estimate(library, library.model(), iter(library.pairs), progress=False)
    assert "gap:" not in capsys.readouterr().err


def test_the_fingerprint_knows_the_model(library: SmallLibrary, gap: GapVectors) -> None:
    def found(model: Any) -> str | None:
        return gap.fingerprint.compare(model_fingerprint(model)).difference

    model = library.model()
    assert model_fingerprint(model).digest == gap.fingerprint.digest
    adapted = with_lora(model, target_modules=".*(q_proj|fc1|qkv)", modules_to_save=["fc2"])
    randomise_adapters(adapted)
    assert model_fingerprint(adapted.get_base_model()).digest == gap.fingerprint.digest
    for dtype in (torch.bfloat16, torch.float16):
        assert found(library.model(dtype=dtype)) is None
        assert found(library.model(dtype=dtype).float()) is None
    resized = library.model()
    resized.resize_token_embeddings(400)
    assert found(resized) is None, "new tokens leave the gap what it was"
    assert found(adapted.merge_and_unload()) is not None

    for part in ("vision_model.encoder.layers.0.mlp", "language_model.model.decoder.layers.2"):
        other = library.model()
        with torch.no_grad():
            for value in other.get_submodule(part).parameters():
                value.add_(0.01 * torch.randn(value.shape))
        difference = found(other)
        assert difference is not None and part in difference
    other = library.model()
    other.config.text_config.num_attention_heads = 2
    assert found(other) == "its configuration has other sizes"


def test_target_modules_of_a_model(library: SmallLibrary, gap: GapVectors) -> None:
    model = library.model()
    pattern = gapinit.target_modules(model, [1, 2])
    names = [name for name, _ in model.named_modules()]
    hit = [name for name in names if re.fullmatch(pattern, name)]
    assert hit == gap.target_modules([1, 2])
    with_vision = gapinit.target_modules(model, [1, 2], vision=True)
    more = {name for name in names if re.fullmatch(with_vision, name)} - set(hit)
    assert more and all(name.startswith("vision_model.") for name in more)
    with pytest.raises(gapinit.GapinitError, match="layers: expected decoder layers from 0 to 2"):
        gapinit.target_modules(model, [3])


def test_the_halves_of_a_processor(library: SmallLibrary, gap: GapVectors) -> None:
    processor = gapinit.load_processor(library.folder, local_files_only=True)
    found = gapinit.estimate_gap(library.model(), processor, library.pairs, progress=False)
    torch.testing.assert_close(found.vectors, gap.vectors, rtol=1e-4, atol=1e-5)

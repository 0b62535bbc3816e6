"""`initialize_lora_gap_weights`: what it sets, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

import gapinit
from gapinit.gap.gap_vectors import GapVectors, ModuleGap

from .small_library import (
    WIDTH,
    Reference,
    SmallLibrary,
    hooks_of,
    logits,
    weights_of,
)
from .small_lora import (
    DECODER,
    FC1,
    FC2,
    Q,
    direction,
    lora,
    matrices,
    refused,
    train_a_step,
    with_lora,
)

VISION = "vision_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def base_logits(library: SmallLibrary, plain: Any) -> Tensor:
    return logits(plain, library)


@pytest.mark.parametrize("rank", [1, 4])
def test_a_is_zero_and_b_points_along_the_gap(
    plain: Any, gap: GapVectors, expected: Reference, rank: int
) -> None:
    model = with_lora(plain, r=rank)
    generator = torch.Generator().manual_seed(5)
    report = gapinit.initialize_lora_gap_weights(model, gap, generator=generator)
    assert len(report.modules) == 12 and {one.layer for one in report.modules} == {1, 2}
    for one in report.modules:
        a, b = matrices(model, one.name)
        assert torch.equal(a, torch.zeros_like(a))
        torch.testing.assert_close(b.norm(dim=0), torch.ones(rank), rtol=1e-6, atol=1e-6)
        cosine = b[:, 0].double() @ direction(expected, plain, one.name)
        assert cosine.item() == pytest.approx(1, abs=1e-6)
        assert one.cosine == pytest.approx(1, abs=1e-6) and one.noise_cosine == 1
        if rank > 1:
            others = b.T @ b - torch.eye(rank)
            assert others.abs().max() < 0.99, "the further columns are others"
    again = with_lora(plain, r=rank)
    gapinit.initialize_lora_gap_weights(again, gap, generator=torch.Generator().manual_seed(5))
    for name in (Q, FC1):
        assert torch.equal(matrices(model, name)[1], matrices(again, name)[1])


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 2},
        {"use_dora": True},
        {"use_dora": True, "init_lora_weights": False},
        {"use_rslora": True, "r": 2, "lora_alpha": 7},
        {"lora_bias": True, "init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False, "lora_alpha": 32},
        {"low_cpu_mem_usage": True},
        {"low_cpu_mem_usage": True, "use_dora": True},
    ],
    ids=str,
)
def test_every_kind_of_lora_starts_as_the_base(
    library: SmallLibrary,
    plain: Any,
    gap: GapVectors,
    base_logits: Tensor,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = with_lora(plain, **options)
    meta = options.get("low_cpu_mem_usage", False)
    assert lora(model, Q).lora_A["default"].weight.is_meta == meta
    gapinit.initialize_lora_gap_weights(model, gap)
    assert all(not value.is_meta for value in model.parameters())
    assert lora(model, Q).lora_A["default"].weight.requires_grad
    torch.testing.assert_close(logits(model, library), base_logits, rtol=0, atol=1e-6)
    frozen = {name: value for name, value in weights_of(model).items() if "lora_" not in name}
    train_a_step(model, library)
    assert all(torch.equal(weights_of(model)[name], value) for name, value in frozen.items())
    trained = logits(model, library)
    assert (trained - base_logits).abs().max() > 1e-4
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["init_lora_weights"] == options.get("init_lora_weights", True)
    stock = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    torch.testing.assert_close(logits(stock, library), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(library: SmallLibrary, gap: GapVectors, adapter_dtype: torch.dtype) -> None:
    half = library.model(dtype=torch.bfloat16).requires_grad_(False)
    expected = logits(half, library)
    model = with_lora(half)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = value.data.to(adapter_dtype)
    report = gapinit.initialize_lora_gap_weights(model, gap)  # measured in float32
    a, b = matrices(model, Q)
    assert a.dtype == b.dtype == adapter_dtype and torch.equal(a, torch.zeros_like(a))
    assert all(value.dtype != torch.float64 for value in model.parameters())
    assert b.double().norm().item() == pytest.approx(1, abs=5e-3)
    assert all(one.cosine > 0.9999 for one in report.modules)
    torch.testing.assert_close(logits(model, library), expected, rtol=0, atol=0)


def test_nothing_else_is_touched(library: SmallLibrary, plain: Any, gap: GapVectors) -> None:
    model = with_lora(plain)
    model.add_adapter("second", LoraConfig(target_modules=["q_proj", "k_proj"], r=2))
    model.train()
    calls: list[int] = []
    lora(model, Q).register_forward_hook(lambda *_: calls.append(1))
    before, hooks = weights_of(model), hooks_of(model)
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    identities = {name: id(value) for name, value in model.named_parameters()}
    gapinit.initialize_lora_gap_weights(model, gap)
    for name, value in model.named_parameters():
        changed = not torch.equal(value, before[name])
        assert changed == (".default.weight" in name), name
        assert flags[name] == value.requires_grad and identities[name] == id(value)
    assert hooks_of(model) == hooks and not calls and model.training
    assert model.active_adapters == ["default"]

    model.set_adapter("second")
    first = weights_of(model)
    gap_of_all = gapinit.estimate_gap(model, library.processor(), library.pairs, progress=False)
    torch.testing.assert_close(gap_of_all.vectors, gap.vectors)
    report = gapinit.initialize_lora_gap_weights(model, gap, adapter_name="second")
    assert report.adapter_name == "second" and {one.layer for one in report.modules} == {0, 1, 2}
    for name, value in model.named_parameters():
        assert torch.equal(value, first[name]) == (".second.weight" not in name), name


def test_coordinates_of_the_module(plain: Any, gap: GapVectors, expected: Reference) -> None:
    model = with_lora(plain)
    report = gapinit.initialize_lora_gap_weights(model, gap, coordinates="module")
    for one in report.modules:
        column = matrices(model, one.name)[1][:, 0].double()
        cosine = torch.cosine_similarity(column, expected.module_gap(one.name), dim=0)
        assert cosine.item() == pytest.approx(1, abs=1e-6)
    layer = gapinit.alignment(model, gap)
    own = gapinit.alignment(model, gap, coordinates="module")
    assert min(own.values()) > 1 - 1e-6 > max(map(abs, layer.values()))


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_noise_is_the_formula_and_what_the_report_says(
    plain: Any, gap: GapVectors, expected: Reference, scale: Any
) -> None:
    model = with_lora(plain)
    generator = torch.Generator().manual_seed(0)
    report = gapinit.initialize_lora_gap_weights(
        model, gap, noise=0.6, noise_scale=scale, generator=generator
    )
    for one in report.modules:
        column = matrices(model, one.name)[1][:, 0].double()
        cosine = column @ direction(expected, plain, one.name)
        assert cosine.item() == pytest.approx(one.noise_cosine, abs=1e-6)
        assert cosine.item() == pytest.approx(one.cosine, abs=1e-6)
    # Modules of one layer that take the gap itself share its noise.
    cosines = {one.name: one.noise_cosine for one in report.modules}
    assert cosines[Q] == pytest.approx(cosines[FC2], abs=1e-12)
    below = cosines[FC2.replace("layers.2", "layers.1")]
    assert report.noise_cosine == pytest.approx((cosines[Q] + below) / 2, abs=1e-12)

    # Drawn for every layer of the decoder, whichever are adapted.
    eta = torch.randn(3, WIDTH, generator=generator.manual_seed(0), dtype=torch.float64)[2]
    vector = expected.gaps[2]
    if scale == "unit":
        vector, eta = vector / vector.norm(), eta / WIDTH**0.5
    noisy = vector + 0.6 * eta
    column = matrices(model, Q)[1][:, 0].double()
    torch.testing.assert_close(column, noisy / noisy.norm(), rtol=0, atol=1e-5)


def test_unit_noise_sets_the_mean_cosine(plain: Any, gap: GapVectors) -> None:
    """About 1 / sqrt(1 + epsilon^2), whatever the gap's length."""
    model = with_lora(plain, (2,))
    for length in (0.01, 50.0):
        long = replace(gap, vectors=gap.vectors * length)
        found = []
        for seed in range(30):
            generator = torch.Generator().manual_seed(seed)
            report = gapinit.initialize_lora_gap_weights(
                model, long, noise=0.6, generator=generator
            )
            found.append(report.noise_cosine)
        assert sum(found) / len(found) == pytest.approx(1.36**-0.5, abs=0.03)
    own = gapinit.initialize_lora_gap_weights(model, gap, noise=0.6, coordinates="module")
    assert len({one.noise_cosine for one in own.modules}) == 6


def test_the_report_is_a_short_table(plain: Any, gap: GapVectors) -> None:
    report = gapinit.initialize_lora_gap_weights(with_lora(plain), gap)
    lines = str(report).splitlines()
    assert lines[0] == (
        "adapter 'default': A = 0, first column of B along the gap (coordinates: layer, noise: 0)"
    )
    assert [line.split() for line in lines[2:]] == [
        ["1", "6", "1.0000", "1.0000"],
        ["2", "6", "1.0000", "1.0000"],
    ]
    assert report.weights_skipped == 0 and report.weights_compared > 60


def test_alignment_of_other_starts(plain: Any, gap: GapVectors, expected: Reference) -> None:
    model = with_lora(plain)
    assert set(gapinit.alignment(model, gap).values()) == {0.0}
    with torch.no_grad():
        for name in (Q, FC1):
            weight = lora(model, name).lora_B["default"].weight
            weight.copy_(torch.randn(weight.shape))
    found = gapinit.alignment(model, gap)
    assert len(found) == 12
    for name in (Q, FC1):
        column = matrices(model, name)[1][:, 0].double()
        cosine = torch.cosine_similarity(column, direction(expected, plain, name), dim=0)
        assert found[name] == pytest.approx(cosine.item(), abs=1e-6)


def test_adapters_that_are_not_there(plain: Any, gap: GapVectors) -> None:
    refused(r"it has no LoRA layer. Add an adapter first", plain, gap)
    model = with_lora(plain)
    model.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    refused("no LoRA adapter 'third', expected: default, second", model, gap, adapter_name="third")
    frozen = r"adapter 'second' is frozen.*set_adapter\('second'\)"
    refused(frozen, model, gap, adapter_name="second")
    refused("is not supported, expected one of", nn.Linear(2, 2), gap)


def test_options_that_make_no_sense(plain: Any, gap: GapVectors) -> None:
    model = with_lora(plain)
    refused(
        "coordinates: expected one of layer, module, found 'own'", model, gap, coordinates="own"
    )
    for noise in (-0.1, float("nan"), float("inf"), "0.2"):
        refused("noise: expected a finite number of at least 0", model, gap, noise=noise)
    refused("noise_scale: expected one of unit, raw, found 'big'", model, gap, noise_scale="big")
    with pytest.raises(gapinit.GapinitError, match="coordinates: expected"):
        gapinit.alignment(model, gap, coordinates="own")  # type: ignore[arg-type]
    with pytest.raises(gapinit.GapinitError, match="coordinates: expected"):
        gapinit.GapAlignmentCallback(gap, coordinates="own")  # type: ignore[arg-type]


def test_gaps_of_other_models(plain: Any, gap: GapVectors) -> None:
    narrow = replace(gap, vectors=gap.vectors[:, :16])
    refused("measured on another model.*width 16, .* has 32", with_lora(plain), narrow)
    deep = replace(gap, num_layers=4)
    refused("measured on another model.*layers: 4, .* has 3", with_lora(plain), deep)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.get_submodule(FC1).weight.mul_(1.1)
    refused(
        rf"measured on another model.*1 of its \d+ weights differ.*{FC1}", with_lora(other), gap
    )
    pissa = with_lora(plain, init_lora_weights="pissa")
    refused("measured on another model", pissa, gap)
    refused(
        "init_lora_weights='orthogonal'", with_lora(plain, r=2, init_lora_weights="orthogonal"), gap
    )


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gaps_without_direction(plain: Any, gap: GapVectors, value: float) -> None:
    vectors = gap.vectors.clone()
    vectors[2] = value
    refused(
        "gap of decoder layer 2: the direction has norm",
        with_lora(plain),
        replace(gap, vectors=vectors),
    )
    gapinit.initialize_lora_gap_weights(with_lora(plain, (1,)), replace(gap, vectors=vectors))
    own = dict(gap.modules) | {FC1: ModuleGap(2, gap.modules[FC1].vector * value)}
    broken = replace(gap, modules=own)
    refused(f"gap at the output of {FC1}: ", with_lora(plain), broken, coordinates="module")
    own = {name: module for name, module in gap.modules.items() if name != FC1}
    missing = replace(gap, modules=own)
    refused(
        f"{FC1}: no gap was measured at its output", with_lora(plain), missing, coordinates="module"
    )


def test_modules_that_the_gap_does_not_cover(
    library: SmallLibrary, plain: Any, gap: GapVectors
) -> None:
    some = gapinit.estimate_gap(
        plain, library.processor(), library.pairs, layers=[1], progress=False
    )
    refused(
        rf"covers the decoder layers 1, but.*'{DECODER}.2.self_attn.k_proj'.* and 3 more",
        with_lora(plain),
        some,
    )
    gapinit.initialize_lora_gap_weights(with_lora(plain, (1,)), some)
    for targets, name in (
        (["fc1"], VISION),
        (["language_projection"], "language_projection"),
        (["q_proj", "lm_head"], "language_model.lm_head"),
        (["q_proj", "embed_tokens"], "language_model.model.decoder.embed_tokens"),
    ):
        model = with_lora(plain, target_modules=targets)
        refused(f"outside the language model's decoder layers.*'{name}'", model, gap)


def test_lora_fa_is_refused(plain: Any, gap: GapVectors) -> None:
    model = with_lora(plain)
    for name, value in model.named_parameters():
        if "lora_A" in name:
            value.requires_grad_(False)
    refused("A of adapter 'default' is frozen.* LoRA-FA", model, gap)
    callback = gapinit.GapAlignmentCallback(gap)
    with pytest.warns(UserWarning, match="LoRA-FA"):
        callback.on_train_begin(None, None, None, model=model)  # type: ignore[arg-type]

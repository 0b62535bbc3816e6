"""Methods: where each one starts, what it leaves alone, and that its adapter loads anywhere."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapinit.adapters.files import load_adapter, save_adapter
from gapinit.adapters.lora import alignment, layer_of, lora_layers, module_directions
from gapinit.adapters.methods.gap_init import add_noise
from gapinit.adapters.methods.setup import adapt
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError
from gapinit.gap.gap_file import read_gap

from .method_cases import (
    BASELINES,
    CONTROLS,
    PAPER,
    logits,
    losses,
    matrices,
    setup,
)
from .plain_json import forget_digests, names
from .small_backbone import (
    SmallWorld,
    make_backbone,
    randomise,
    reference_batch,
    small_world,
    trainable,
)

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

POINTED = ["gap-init", "random-b"]
WIDTH, FFN = 32, 128


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def test_every_method_is_tested() -> None:
    """The paper's here, the others in test_methods_baselines.py and test_methods_controls.py."""
    trained = [name for name, method in METHODS.items() if method.module]
    assert sorted([*PAPER, *BASELINES, *CONTROLS]) == sorted(trained)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.label and method.source and method.applies
    assert method.uses_gap == (method.needs == "calibration pairs")
    if method.module:
        assert method.module == name.replace("-", "_")
        assert callable(import_module(f"gapinit.adapters.methods.{method.module}").adapt)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("method", PAPER)
def test_nothing_changes_at_step_0(world: SmallWorld, method: str, rank: int) -> None:
    batch = reference_batch(world, [0, 50])
    expected = logits(world.stock_model(), batch)
    adapted = adapt(method, setup(world, rank=rank, alpha=2.0 * rank))
    found = logits(adapted.model, batch)
    if adapted.changes_base:
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=2e-5 * expected.abs().max().item()
        )
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method", PAPER)
def test_adapters_are_in_the_chosen_decoder_layers_alone(world: SmallWorld, method: str) -> None:
    names = list(lora_layers(adapt(method, setup(world, layers=[0, 2])).model))
    assert len(names) == 12
    inside = "base_model.model.language_model.model.decoder.layers."
    assert all(name.startswith(inside) for name in names)
    assert {layer_of(name) for name in names} == {0, 2}
    adapted = adapt(method, setup(world)).model
    learned = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert len(learned) == 24 and all(".lora_" in name for name in learned)


@pytest.mark.parametrize("method", POINTED)
@pytest.mark.parametrize("rank", [1, 3])
def test_zeroed_a_and_unit_columns_of_b(world: SmallWorld, method: str, rank: int) -> None:
    columns: dict[int, list[Tensor]] = {}
    for weight_a, weight_b in matrices(adapt(method, setup(world, rank=rank))).values():
        assert weight_a.shape[0] == weight_b.shape[1] == rank
        assert torch.count_nonzero(weight_a) == 0
        torch.testing.assert_close(weight_b.norm(dim=0), torch.ones(rank), rtol=0, atol=1e-6)
        random = weight_b if method == "random-b" else weight_b[:, 1:]
        columns.setdefault(len(weight_b), []).extend(random.T)
    for drawn in columns.values():
        if drawn:
            cosines = torch.stack(drawn) @ torch.stack(drawn).T - torch.eye(len(drawn))
            assert cosines.abs().max() < 0.8, "every random column is drawn anew"


def test_gap_init_points_along_the_gap(world: SmallWorld) -> None:
    """d-wide modules take the layer's own gap; fc1, wider, takes W0 g."""
    adapted = adapt("gap-init", setup(world))
    gap = read_gap(world.gap).gap
    original = dict(world.stock_model().named_modules())
    seen = set()
    for name, (_, weight_b) in matrices(adapted).items():
        layer = int(name.split(".layers.")[1][0])
        expected = torch.from_numpy(gap[layer])
        if name.endswith("fc1"):
            weight: Any = original[name.removeprefix("base_model.model.")].weight
            expected = weight.double() @ expected
        assert len(weight_b) == len(expected)
        cosine = torch.cosine_similarity(weight_b[:, 0].double(), expected, dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-6), name
        seen.add((len(weight_b), layer))
    assert seen == {(WIDTH, 1), (WIDTH, 2), (FFN, 1), (FFN, 2)}
    one, two = torch.from_numpy(gap[1:])
    assert torch.cosine_similarity(one, two, dim=0) < 0.99, "layers differ"


def test_directions_are_those_of_the_untouched_weights(world: SmallWorld) -> None:
    """PiSSA moves part of W0 into the adapter: the direction of fc1 is still W0 g."""
    gap = setup(world).gap
    expected = module_directions(adapt("lora-kaiming", setup(world)).model, gap)
    found = module_directions(adapt("pissa", setup(world)).model, gap)
    for name, direction in expected.items():
        torch.testing.assert_close(found[name], direction, rtol=0, atol=1e-6)


def test_random_b_is_not_the_gap_and_depends_on_the_seed(world: SmallWorld) -> None:
    gap = setup(world).gap
    adapted = adapt("random-b", setup(world))
    cosines = alignment(adapted.model, module_directions(adapted.model, gap))
    assert sum(cosine**2 for cosine in cosines) / len(cosines) < 0.2
    again, other = (
        adapt("random-b", setup(world, generator=torch.Generator().manual_seed(seed)))
        for seed in (4, 5)
    )
    for name, (_, weight_b) in matrices(adapted).items():
        assert torch.equal(weight_b, matrices(again)[name][1])
        assert not torch.equal(weight_b, matrices(other)[name][1])


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize(
    ("method", "initialisation"),
    [("lora-gaussian", "gaussian"), ("lora-kaiming", True), ("pissa", "pissa")],
)
def test_baselines_are_stock_peft(
    world: SmallWorld, method: str, initialisation: Any, rank: int
) -> None:
    torch.manual_seed(12)
    ours = adapt(method, setup(world, rank=rank, alpha=2.0 * rank)).model
    torch.manual_seed(12)
    names = [name.removeprefix("base_model.model.") for name in lora_layers(ours)]
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=names, init_lora_weights=initialisation
    )
    stock = get_peft_model(world.stock_model(), config)
    expected = stock.state_dict()
    found = ours.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_scale_of_the_two_standard_initialisations(world: SmallWorld) -> None:
    """At rank 1 PEFT's "gaussian" draws A from N(0, 1): far above its default, at any width."""
    norms = {}
    for method in ("lora-gaussian", "lora-kaiming"):
        torch.manual_seed(0)
        found = matrices(adapt(method, setup(world, layers=[0, 1, 2]))).values()
        assert all(torch.count_nonzero(weight_b) == 0 for _, weight_b in found)
        squares = [(weight_a.norm() ** 2 / weight_a.shape[1]).item() for weight_a, _ in found]
        norms[method] = sum(squares) / len(squares)
    assert norms["lora-gaussian"] == pytest.approx(1.0, abs=0.2)
    assert norms["lora-kaiming"] < 0.05


@pytest.mark.parametrize("method", POINTED)
def test_the_sign_of_b_does_not_matter(world: SmallWorld, method: str) -> None:
    runs = []
    for sign in (1, -1):
        scheme = setup(world)
        adapted = adapt(method, scheme)
        with torch.no_grad():
            for layer in lora_layers(adapted.model).values():
                layer.lora_B["default"].weight.mul_(sign)
        runs.append(losses(adapted, world, scheme))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][-1]


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 3.0])
def test_unit_noise_sets_the_cosine(epsilon: float) -> None:
    """E[cos] is about 1 / sqrt(1 + epsilon^2) whatever the gap's length."""
    width = 4096
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(3, width, dtype=torch.float64, generator=generator)
    gap *= torch.tensor([[0.01], [1.0], [50.0]])
    noisy = add_noise(gap, epsilon, "unit", generator)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(3, dtype=torch.float64))
    cosine = torch.cosine_similarity(noisy, gap, dim=1)
    expected = 1 / math.sqrt(1 + epsilon**2)
    # eta along g has standard deviation epsilon / sqrt(d): five of those
    assert (cosine - expected).abs().max() < 5 * epsilon / math.sqrt(width)


def test_raw_noise_is_the_formula_as_printed() -> None:
    generator = torch.Generator().manual_seed(1)
    gap = torch.randn(2, 50, dtype=torch.float64) * torch.tensor([[0.1], [30.0]])
    noisy = add_noise(gap, 0.7, "raw", generator)
    eta = torch.randn(gap.shape, generator=generator.manual_seed(1), dtype=torch.float64)
    expected = (gap + 0.7 * eta) / (gap + 0.7 * eta).norm(dim=1, keepdim=True)
    torch.testing.assert_close(noisy, expected)
    cosine = torch.cosine_similarity(noisy, gap, dim=1)
    assert cosine[0] < 0.5 < 0.98 < cosine[1], "what epsilon means depends on the gap's length"


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_a_noisy_run_records_the_cosine_it_got(world: SmallWorld, scale: str) -> None:
    scheme = setup(world, noise=0.8, noise_scale=scale)
    adapted = adapt("gap-init", scheme)
    found = alignment(adapted.model, module_directions(adapted.model, scheme.gap))
    wide = [
        cosine
        for cosine, name in zip(found, lora_layers(adapted.model), strict=True)
        if not name.endswith("fc1")
    ]
    assert adapted.noise_cosine is not None and adapted.noise_cosine < 0.999
    assert adapted.noise_cosine == pytest.approx(sum(wide) / len(wide), abs=1e-6)
    assert adapt("gap-init", setup(world)).noise_cosine is None


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_gap_that_points_nowhere_names_the_module(world: SmallWorld, value: float) -> None:
    gap = setup(world).gap.clone()
    gap[2] = value
    with pytest.raises(GapinitError, match=r"decoder\.layers\.2\.self_attn\.\w+: .* norm"):
        adapt("gap-init", setup(world, gap=gap))
    with pytest.raises(GapinitError, match=r"layers\.2|layer 2"):
        adapt("gap-init", setup(world, gap=gap, noise=0.5, noise_scale="unit"))


def test_a_gap_of_another_width_names_the_module(world: SmallWorld) -> None:
    with pytest.raises(GapinitError, match=r"layers\.1\.self_attn\.k_proj: .*width 32.*width 20"):
        adapt("gap-init", setup(world, gap=torch.ones(3, 20, dtype=torch.float64)))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("method", PAPER)
def test_stock_peft_loads_what_was_trained(
    world: SmallWorld, method: str, rank: int, tmp_path: Path
) -> None:
    """On an untouched base the saved adapter gives the trained model's outputs."""
    scheme = setup(world, layers=[0, 1, 2], rank=rank, alpha=2.0 * rank)
    adapted = adapt(method, scheme)
    before = tmp_path / "before" if adapted.changes_base else None
    if before:
        save_adapter(adapted.model, before)
    losses(adapted, world, scheme)
    batch = reference_batch(world, [2, 77])
    expected = logits(adapted.model, batch)
    untrained = logits(world.stock_model(), batch)
    assert (expected - untrained).abs().max() > 1e-2, "training moved the outputs"
    save_adapter(adapted.model, tmp_path / "adapter", before)
    stock = PeftModel.from_pretrained(world.stock_model(), tmp_path / "adapter")
    torch.testing.assert_close(logits(stock, batch), expected, rtol=1e-4, atol=1e-4)
    merged = stock.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert config["init_lora_weights"] is True
    assert config["r"] == (2 * rank if method == "pissa" else rank)
    assert names(tmp_path / "adapter") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_of_another_backbone_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    adapted = adapt("gap-init", setup(world))
    randomise(adapted.model)
    save_adapter(adapted.model, tmp_path / "adapter")
    loaded = load_adapter(load_backbone(world.backbone), tmp_path / "adapter")
    assert {name: value.tolist() for name, value in trainable(adapted.model).items()} == {
        name: value.tolist() for name, value in loaded.named_parameters() if ".lora_" in name
    }
    captions = [text for image in world.images("train") for text in image.captions]
    for folder, changes, message in (
        ("short", {"decoder_layers": 2}, r"layers\.2\.\w.*which this backbone does not have"),
        ("wide", {"decoder_width": 64}, r"has shape \[1, 32\], but this backbone needs \[1, 64\]"),
    ):
        make_backbone(tmp_path / folder, captions, **changes)
        with pytest.raises(GapinitError, match=message):
            load_adapter(load_backbone(tmp_path / folder), tmp_path / "adapter")
    with pytest.raises(GapinitError, match=r"adapter_model.safetensors: no such file"):
        load_adapter(load_backbone(world.backbone), tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    forget_digests(weights)
    values = load_file(weights)
    diverged = {name: torch.full_like(value, math.nan) for name, value in values.items()}
    save_file(diverged, weights, metadata={"format": "pt"})
    with pytest.raises(GapinitError, match=r"adapter_model.safetensors: '.*' is not finite"):
        load_adapter(load_backbone(world.backbone), tmp_path / "adapter")
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(GapinitError, match="damaged"):
        load_adapter(load_backbone(world.backbone), tmp_path / "adapter")

"""What holds for every method: where it starts, what it leaves alone, that it loads anywhere."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapinit.adapters.directions import decoder_modules, module_directions
from gapinit.adapters.files import BASE_WEIGHTS, load_adapter, save_adapter
from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import adapt
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError

from .method_cases import (
    ALONG_A_DIRECTION,
    CHANGE_BASE,
    CONVERTED,
    FROM_DATA,
    PEFTS_OWN,
    QUANTISED,
    TRAINED,
    logits,
    losses,
    matrices,
    ranks,
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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def relative(found: Tensor, expected: Tensor) -> float:
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.label and method.source and method.applies
    assert method.uses_gap == (method.needs == "calibration pairs")
    if method.adapt:
        module, function = method.adapt.split(":")
        assert function == name.replace("-", "_")
        assert callable(getattr(import_module(f"gapinit.adapters.methods.{module}"), function))


def test_the_command_lists_every_method_without_torch() -> None:
    program = "import sys; sys.argv = ['gapinit', 'methods']\nfrom gapinit.cli import main\n"
    program += "try: main()\nfinally: assert not {'torch', 'peft'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["method", "source", "needs", "applies"]
    assert [line.split()[0] for line in lines] == list(METHODS)
    for line, method in zip(lines, METHODS.values(), strict=True):
        for text in (method.source, method.needs, method.applies):
            assert text in line


@pytest.mark.parametrize(("method", "rank"), ranks(TRAINED, 1, 4))
def test_outputs_at_step_0_are_the_bases(world: SmallWorld, method: str, rank: int) -> None:
    """Those of a quantised base too, up to what quantising loses."""
    batch = reference_batch(world, [0, 50])
    stock = world.stock_model()
    expected = logits(stock, batch)
    adapted = adapt(method, setup(world, rank=rank, alpha=2.0 * rank))
    assert adapted.changes_base == (method in CHANGE_BASE)
    assert adapted.saves_base == (method in QUANTISED)
    found = logits(adapted.model, batch)
    if method in QUANTISED:
        assert 0.01 < relative(found, expected) < 0.25
    elif method in [*CONVERTED, "dora", "orthogonal"]:
        assert relative(found, expected) < 2e-6
    else:
        assert torch.equal(found, expected)
    for name, layer in list(lora_layers(adapted.model).items())[:2]:
        same = torch.equal(layer.get_base_layer().weight, stock.get_submodule(name).weight)
        assert same != adapted.changes_base


@pytest.mark.parametrize("method", PEFTS_OWN)
def test_what_needs_no_data_is_stock_peft(world: SmallWorld, method: str) -> None:
    torch.manual_seed(12)
    ours = adapt(method, setup(world, rank=2, alpha=4.0)).model
    torch.manual_seed(12)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=list(lora_layers(ours)), **PEFTS_OWN[method]
    )
    stock = get_peft_model(world.stock_model(), config)
    found, expected = ours.state_dict(), stock.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert trainable(ours).keys() == trainable(stock).keys()


def test_adapters_are_in_the_chosen_decoder_layers_alone(world: SmallWorld) -> None:
    for method in ("gap-init", "pissa"):
        adapted = adapt(method, setup(world, layers=[0, 2])).model
        found = list(lora_layers(adapted))
        inside = (
            "language_model.model.decoder.layers.0.",
            "language_model.model.decoder.layers.2.",
        )
        assert len(found) == 12 and all(name.startswith(inside) for name in found)
        assert len(trainable(adapted)) == 24 and all(
            ".lora_" in name for name in trainable(adapted)
        )


@pytest.mark.parametrize(("method", "rank"), ranks(ALONG_A_DIRECTION, 1, 3))
def test_zeroed_a_and_unit_columns_of_b(world: SmallWorld, method: str, rank: int) -> None:
    adapted = adapt(method, setup(world, rank=rank))
    drawn: dict[int, list[Tensor]] = {}
    for weight_a, weight_b in matrices(adapted).values():
        assert weight_a.shape[0] == weight_b.shape[1] == rank
        assert torch.count_nonzero(weight_a) == 0
        torch.testing.assert_close(weight_b.norm(dim=0), torch.ones(rank), rtol=0, atol=1e-6)
        drawn.setdefault(len(weight_b), []).extend(weight_b.T[0 if "random-b" in method else 1 :])
    for columns in filter(None, drawn.values()):
        cosines = torch.stack(columns) @ torch.stack(columns).T - torch.eye(len(columns))
        assert cosines.abs().max() < 0.8, "every random column is drawn anew"
    learned = trainable(adapted.model)
    frozen = method.endswith("frozen-b")
    assert len(learned) == (12 if frozen else 24)
    assert all(".lora_A." in name or (".lora_B." in name and not frozen) for name in learned)
    assert not any(module._forward_hooks for module in adapted.model.modules()), "no hook is left"


@pytest.mark.parametrize(("method", "rank"), [(method, 2) for method in TRAINED])
def test_a_saved_adapter_gives_the_trained_outputs_on_the_untouched_base(
    world: SmallWorld, method: str, rank: int, tmp_path: Path
) -> None:
    scheme = setup(world, layers=[0, 1, 2], rank=rank, alpha=2.0 * rank)
    adapted = adapt(method, scheme)
    before = tmp_path / "before" if adapted.converts else None
    if before:
        save_adapter(adapted.model, before)
    losses(adapted, world, scheme)
    batch = reference_batch(world, [2, 77])
    expected = logits(adapted.model, batch)
    assert (expected - logits(world.stock_model(), batch)).abs().max() > 1e-2, "it was trained"
    folder = tmp_path / "adapter"
    save_adapter(adapted.model, folder, before, with_base=adapted.saves_base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of what does not fit
        ours = load_adapter(load_backbone(world.backbone), folder)
        base: Any = world.stock_model()
        if method in QUANTISED:
            saved = load_file(folder / BASE_WEIGHTS)
            assert len(saved) == 18
            assert not base.load_state_dict(saved, strict=False).unexpected_keys
        stock = PeftModel.from_pretrained(base, folder)
    for model in (ours, stock, ours.merge_and_unload()):
        torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=2e-4)
    config = read_json(folder / "adapter_config.json")
    assert config["init_lora_weights"] is True
    assert config["eva_config"] is config["corda_config"] is config["lora_ga_config"] is None
    assert config["r"] == (2 * rank if method in CONVERTED else rank)
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert names(folder) == sorted([*files, BASE_WEIGHTS] if method in QUANTISED else files)


@pytest.mark.parametrize("method", ["random-b", "loftq", *FROM_DATA])
def test_a_run_repeats_and_loads(world: SmallWorld, method: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name))  # whatever ran before
        world.train(tmp_path / name, method, batch_size=60, learning_rate=5e-3)
    files = ["adapter/adapter_model.safetensors", "steps.csv"]
    files += [f"adapter/{BASE_WEIGHTS}"] if method in QUANTISED else []
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two, file
    record = read_json(tmp_path / "one" / "run.json")
    assert record["changes_base"] == (method in CHANGE_BASE) and 0 < record["gradient_share"] < 1
    assert record["versions"]["peft"] == peft.__version__
    batch = reference_batch(world, list(range(0, 120, 5)))
    loaded = load_adapter(load_backbone(world.backbone), tmp_path / "one" / "adapter")
    assert (logits(loaded, batch) - logits(world.stock_model(), batch)).abs().max() > 1e-3
    if method == "eva":
        # Trained on the cut tail, it must hit no module of the towers and the layers below.
        assert all(".decoder.layers." in name for name in lora_layers(loaded))


def test_directions_are_those_of_the_untouched_weights(world: SmallWorld) -> None:
    """PiSSA moves part of W0 into the adapter: the direction of fc1 is still W0 g."""
    found = []
    for method in ("lora-kaiming", "pissa"):
        scheme = setup(world)
        adapt(method, scheme)
        modules = decoder_modules(scheme.backbone)
        found.append(module_directions(modules, scheme.gap, untrained=True))
    for name, direction in found[0].items():
        torch.testing.assert_close(found[1][name], direction, rtol=0, atol=1e-6)


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


def test_the_sign_of_b_does_not_matter(world: SmallWorld) -> None:
    runs = []
    for sign in (1, -1):
        scheme = setup(world)
        adapted = adapt("gap-init", scheme)
        with torch.no_grad():
            for layer in lora_layers(adapted.model).values():
                layer.lora_B["default"].weight.mul_(sign)
        runs.append(losses(adapted, world, scheme))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][-1]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("orthogonal", {"rank": 3}, r"'rank': .*'orthogonal'.*even rank, found 3"),
        ("random-b", {"noise": 0.5}, "'random-b' takes no noise, found 0.5"),
    ],
)
def test_what_a_method_is_not_made_for(
    world: SmallWorld, method: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GapinitError, match=message):
        adapt(method, setup(world, **changes))


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


def test_base_weights_of_another_backbone_are_refused(world: SmallWorld, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapted = adapt("loftq", setup(world))
    save_adapter(adapted.model, folder, with_base=True)
    forget_digests(folder / BASE_WEIGHTS)
    weights = load_file(folder / BASE_WEIGHTS)
    name = next(name for name in weights if "q_proj" in name)
    for wrong, message in (
        ({name: torch.zeros(3, 3)}, r"has shape \[3, 3\], but this backbone needs \[32, 32\]"),
        ({"nothing.weight": torch.zeros(3)}, r"'nothing.weight' .*this backbone needs none"),
    ):
        save_file(wrong, folder / BASE_WEIGHTS)
        with pytest.raises(GapinitError, match=message):
            load_adapter(load_backbone(world.backbone), folder)
    (folder / BASE_WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(GapinitError, match=f"{BASE_WEIGHTS}: damaged"):
        load_adapter(load_backbone(world.backbone), folder)

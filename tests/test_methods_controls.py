"""Controls: each one's direction against an independent computation, and A = 0 in all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file
from torch import Tensor

from gapinit.adapters.files import save_adapter
from gapinit.adapters.lora import alignment, lora_layers, module_directions, point
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, adapt
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones.tail import tail_loss
from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError
from gapinit.gap.gap_file import read_gap
from gapinit.states.states import extract_states
from gapinit.train.trunk.write import read_trunk

from .method_cases import BATCH, CONTROLS, logits, losses, matrices, ranks, setup
from .small_backbone import SmallWorld, reference_batch, small_world

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

PREFIX = "base_model.model."
Vectors = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def columns(adapted: Adapted) -> Vectors:
    """Return the first column of B of each module, by its name in the bare model."""
    return {
        name.removeprefix(PREFIX): weight_b[:, 0].double().numpy()
        for name, (_, weight_b) in matrices(adapted).items()
    }


def cosine(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def targets(model: Any) -> dict[str, Any]:
    """Return the modules of layers 1 and 2 that are adapted, by name."""
    pattern = re.compile(r"language_model\.model\.decoder\.layers\.[12]\..*(_proj|fc1|fc2)")
    return {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}


def along(world: SmallWorld, vectors: NDArray[np.float64]) -> Vectors:
    """Return what B should take of a vector a layer: the vector, or W0 times it for fc1."""
    found = {}
    for name, module in targets(world.stock_model()).items():
        vector = vectors[int(name.split(".layers.")[1][0])]
        found[name] = module.weight.double().numpy() @ vector if name.endswith("fc1") else vector
    assert len(found) == 12
    return found


def require_along(adapted: Adapted, expected: Vectors, accuracy: float = 1e-6) -> None:
    found = columns(adapted)
    assert set(found) == set(expected)
    for name, vector in expected.items():
        assert abs(cosine(found[name], vector)) == pytest.approx(1.0, abs=accuracy), name


@pytest.mark.parametrize(("method", "rank"), ranks(CONTROLS, 1, 3))
def test_zeroed_a_unit_columns_and_the_base_as_it_was(
    world: SmallWorld, method: str, rank: int
) -> None:
    batch = reference_batch(world, [0, 50])
    adapted = adapt(method, setup(world, rank=rank, alpha=2.0 * rank))
    assert not adapted.changes_base
    assert torch.equal(logits(adapted.model, batch), logits(world.stock_model(), batch))
    for weight_a, weight_b in matrices(adapted).values():
        assert weight_a.shape[0] == weight_b.shape[1] == rank
        assert torch.count_nonzero(weight_a) == 0
        torch.testing.assert_close(weight_b.norm(dim=0), torch.ones(rank), rtol=0, atol=1e-6)
    learned = [name for name, value in adapted.model.named_parameters() if value.requires_grad]
    frozen = method.endswith("frozen-b")
    assert len(learned) == (12 if frozen else 24)
    assert all(".lora_A." in name or (".lora_B." in name and not frozen) for name in learned)
    assert not any(module._forward_hooks for module in adapted.model.modules()), "no hook is left"


def test_a_direction_orthogonal_to_the_gap(world: SmallWorld) -> None:
    scheme = setup(world)
    adapted = adapt("orthogonal-to-gap", scheme)
    gaps = along(world, read_gap(world.gap).gap)
    for name, column in columns(adapted).items():
        assert abs(cosine(column, gaps[name])) < 1e-6
    other = adapt("orthogonal-to-gap", setup(world, generator=torch.Generator().manual_seed(9)))
    for name, column in columns(other).items():
        assert abs(cosine(column, columns(adapted)[name])) < 0.9, "drawn by the run's seed"


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_the_mean_of_a_modality(world: SmallWorld, modality: str, tmp_path: Path) -> None:
    """Against the mean of the states of the gap's own 12 pairs, extracted again."""
    import h5py

    extract_states(world.backbone, world.manifest, tmp_path / "states.h5", pairs=20, seed=0)
    with h5py.File(tmp_path / "states.h5") as file:
        mean = file[modality][:, :12].astype(np.float64).mean(axis=1)
    adapted = adapt(f"{modality}-mean", setup(world))
    require_along(adapted, along(world, mean))
    gaps = along(world, read_gap(world.gap).gap)
    assert all(abs(cosine(b, gaps[name])) < 0.99 for name, b in columns(adapted).items())


def test_the_gap_of_the_layer_half_the_stack_away(world: SmallWorld) -> None:
    """Three layers: layer 1 takes the gap of layer 2, layer 2 that of layer 0."""
    gap = read_gap(world.gap).gap
    require_along(adapt("gap-other-layer", setup(world)), along(world, gap[[1, 2, 0]]))


def test_the_first_gradients_singular_vector(world: SmallWorld) -> None:
    """Against numpy's SVD of the gradient that the whole stock model has on the same captions."""
    model = world.stock_model()
    modules = targets(model)
    for module in modules.values():
        module.weight.requires_grad_(True)
    model(**reference_batch(world, list(range(BATCH)))).loss.backward()
    expected = {}
    for name, module in modules.items():
        left, values, _ = np.linalg.svd(module.weight.grad.double().numpy(), full_matrices=False)
        assert values[0] > 1.0001 * values[1]
        expected[name] = left[:, 0]
    scheme = setup(world)
    adapted = adapt("gradient", scheme)
    require_along(adapted, expected, accuracy=1e-4)
    assert not any(
        value.requires_grad
        for name, value in scheme.backbone.model.named_parameters()
        if ".lora_" not in name
    )


def test_no_direction_has_a_larger_first_gradient(world: SmallWorld) -> None:
    batch = read_trunk(world.trunk("all")).batch(range(BATCH))
    norms = {}
    for method in ("gradient", "gap-init", "random-b", "gap-module", "text-mean"):
        scheme = setup(world)
        adapted = adapt(method, scheme)
        tail_loss(scheme.backbone, batch).backward()
        norms[method] = {
            name: layer.lora_A["default"].weight.grad.norm().item()
            for name, layer in lora_layers(adapted.model).items()
        }
    best = norms.pop("gradient")
    for method, found in norms.items():
        assert all(found[name] <= best[name] * (1 + 1e-4) for name in best), method


def test_the_gap_of_a_modules_own_output(world: SmallWorld) -> None:
    """Against hooks on the whole stock model, caption by caption without padding."""
    model = world.stock_model()
    outputs: dict[str, Tensor] = {}
    for name, module in targets(model).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
    total: Vectors = {}
    samples = len(read_trunk(world.trunk("all")))
    assert samples < CALIBRATION_SAMPLES, "all of them are taken"
    for index in range(samples):
        batch = reference_batch(world, [index])
        # Image tokens, BOS, the caption, EOS: the gap is of the caption, as in states.
        end = batch["input_ids"].shape[1] - 1
        with torch.no_grad():
            model(**batch)
        for name, output in outputs.items():
            states = output.reshape(-1, output.shape[-1]).double().numpy()
            gap = states[5:end].mean(axis=0) - states[:4].mean(axis=0)
            total[name] = total.get(name, 0.0) + gap / samples
    scheme = setup(world)
    adapted = adapt("gap-module", scheme)
    require_along(adapted, total)
    found = columns(adapted)
    assert all(found[name] @ total[name] > 0 for name in total), "text less image"
    assert {len(column) for column in found.values()} == {32, 128}


@pytest.mark.parametrize("method", ["gap-init", "random-b"])
def test_a_frozen_b_is_that_of_its_method_and_stays(world: SmallWorld, method: str) -> None:
    expected = columns(adapt(method, setup(world, noise=0.0)))
    scheme = setup(world)
    adapted = adapt(f"{method}-frozen-b", scheme)
    losses(adapted, world, scheme)
    for name, column in columns(adapted).items():
        assert np.array_equal(column, expected[name])
    assert all(weight_a.abs().max() > 0 for weight_a, _ in matrices(adapted).values())


def test_noise_is_for_the_methods_that_take_it(world: SmallWorld) -> None:
    adapted = adapt("gap-init-frozen-b", setup(world, noise=0.5))
    assert adapted.noise_cosine is not None and adapted.noise_cosine < 0.99
    for method in ("text-mean", "random-b", "lora-kaiming"):
        assert not METHODS[method].takes_noise
        with pytest.raises(GapinitError, match=f"'{method}' takes no noise, found 0.5"):
            adapt(method, setup(world, noise=0.5))


@pytest.mark.parametrize(
    ("method", "missing", "message"),
    [
        ("gradient", {"first_batches": None}, "made from training batches, and none were given"),
        ("gap-module", {"first_batches": None}, "made from training batches"),
        ("text-mean", {"means": {}}, "needs the mean text state"),
        ("vision-mean", {"means": {}}, "needs the mean vision state"),
    ],
)
def test_a_method_says_what_it_lacks(
    world: SmallWorld, method: str, missing: dict[str, Any], message: str
) -> None:
    with pytest.raises(GapinitError, match=message):
        adapt(method, setup(world, **missing))


def test_a_zeroed_a_that_is_frozen_is_refused(world: SmallWorld) -> None:
    """LoRA-FA freezes A: with A = 0 the adapter would be nothing for ever."""
    scheme = setup(world)
    adapted = adapt("lora-kaiming", scheme)
    create_lorafa_optimizer(adapted.model, r=1, lora_alpha=2, lr=1e-3)
    directions = module_directions(adapted.model, scheme.gap)
    with pytest.raises(GapinitError, match=r"layers\.1\.self_attn\.k_proj: A is frozen.*LoRA-FA"):
        point(adapted.model, directions, scheme.generator)


@pytest.mark.parametrize("method", CONTROLS)
def test_a_run_trains_repeats_and_loads_with_stock_peft(
    world: SmallWorld, method: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name))  # whatever ran before
        world.train(tmp_path / name, method, batch_size=60, epochs=3, learning_rate=5e-3)
    for file in ("adapter/adapter_model.safetensors", "steps.csv"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two
    record = read_json(tmp_path / "one" / "run.json")
    assert record["changes_base"] is False and 0 < record["gradient_share"] < 1
    saved = load_file(tmp_path / "one" / "adapter" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for value in saved.values()), "A has been trained"


@pytest.mark.parametrize("method", ["gradient", "gap-init-frozen-b"])
def test_the_saved_adapter_gives_the_trained_outputs(
    world: SmallWorld, method: str, tmp_path: Path
) -> None:
    scheme = setup(world)
    adapted = adapt(method, scheme)
    found = losses(adapted, world, scheme)
    assert found[-1] < found[0]
    save_adapter(adapted.model, tmp_path / "adapter")
    batch = reference_batch(world, [2, 77])
    stock = PeftModel.from_pretrained(world.stock_model(), tmp_path / "adapter")
    expected = logits(adapted.model, batch)
    torch.testing.assert_close(logits(stock, batch), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(world.stock_model(), batch)).abs().max() > 1e-3


def test_alignment_with_the_gap_tells_the_controls_apart(world: SmallWorld) -> None:
    found = {}
    for method in ("gap-init-frozen-b", "orthogonal-to-gap", "gap-other-layer"):
        scheme = setup(world)
        model = adapt(method, scheme).model
        cosines = alignment(model, module_directions(model, scheme.gap))
        found[method] = float(np.mean(np.abs(cosines)))
    assert found["gap-init-frozen-b"] == pytest.approx(1.0, abs=1e-6)
    assert found["orthogonal-to-gap"] < 1e-6 < found["gap-other-layer"] < 0.99

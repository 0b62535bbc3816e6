"""Controls: each one's direction against an independent computation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import gapinit
from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import CALIBRATION_SAMPLES, Adapted, adapt
from gapinit.backbones.tail import tail_loss
from gapinit.gap.gap_file import read_gap
from gapinit.states.states import extract_states
from gapinit.train.trunk.write import read_trunk

from .method_cases import BATCH, SAMPLES, losses, matrices, setup
from .small_backbone import SmallWorld, reference_batch, small_world

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

Vectors = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def columns(adapted: Adapted) -> Vectors:
    """Return the first column of B of each module, by its name in the bare model."""
    return {
        name: weight_b[:, 0].double().numpy() for name, (_, weight_b) in matrices(adapted).items()
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
    assert SAMPLES < CALIBRATION_SAMPLES, "all of them are taken"
    for index in range(SAMPLES):
        batch = reference_batch(world, [index])
        # Image tokens, BOS, the caption, EOS: the gap is of the caption, as in states.
        end = batch["input_ids"].shape[1] - 1
        with torch.no_grad():
            model(**batch)
        for name, output in outputs.items():
            states = output.reshape(-1, output.shape[-1]).double().numpy()
            gap = states[5:end].mean(axis=0) - states[:4].mean(axis=0)
            total[name] = total.get(name, 0.0) + gap / SAMPLES
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


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_a_noisy_run_records_the_cosine_it_got(world: SmallWorld, scale: str) -> None:
    scheme = setup(world, noise=0.8, noise_scale=scale)
    adapted = adapt("gap-init", scheme)
    found = gapinit.alignment(adapted.model, scheme.gap)
    wide = [cosine for name, cosine in found.items() if not name.endswith("fc1")]
    assert adapted.noise_cosine is not None and adapted.noise_cosine < 0.999
    assert adapted.noise_cosine == pytest.approx(sum(wide) / len(wide), abs=1e-6)
    assert adapt("gap-init", setup(world)).noise_cosine is None


def test_random_b_is_not_the_gap_and_depends_on_the_seed(world: SmallWorld) -> None:
    scheme = setup(world)
    adapted = adapt("random-b", scheme)
    cosines = gapinit.alignment(adapted.model, scheme.gap).values()
    assert sum(cosine**2 for cosine in cosines) / len(cosines) < 0.2
    again, other = (
        adapt("random-b", setup(world, generator=torch.Generator().manual_seed(seed)))
        for seed in (4, 5)
    )
    for name, column in columns(adapted).items():
        assert np.array_equal(column, columns(again)[name])
        assert not np.array_equal(column, columns(other)[name])


def test_alignment_with_the_gap_tells_the_controls_apart(world: SmallWorld) -> None:
    found = {}
    for method in ("gap-init-frozen-b", "orthogonal-to-gap", "gap-other-layer"):
        scheme = setup(world)
        cosines = gapinit.alignment(adapt(method, scheme).model, scheme.gap)
        found[method] = float(np.mean(np.abs(list(cosines.values()))))
    assert found["gap-init-frozen-b"] == pytest.approx(1.0, abs=1e-6)
    assert found["orthogonal-to-gap"] < 1e-6 < found["gap-other-layer"] < 0.99

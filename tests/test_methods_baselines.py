"""Baselines: each one's start against an independent computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from packaging.version import Version
from peft.utils.loftq_utils import loftq_init
from torch import Tensor

from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.setup import Adapted, adapt
from gapinit.adapters.methods.weight_space import loftq_matrices
from gapinit.adapters.nf4 import BLOCK, LEVELS, quantise

from .method_cases import SAMPLES, matrices, setup
from .small_backbone import SmallWorld, reference_batch, small_world

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def base_weights(adapted: Adapted) -> dict[str, Tensor]:
    return {
        name: layer.get_base_layer().weight.detach()
        for name, layer in lora_layers(adapted.model).items()
    }


def test_eva_takes_the_principal_components_of_the_learned_positions(world: SmallWorld) -> None:
    """Against numpy's SVD of the inputs of the whole stock model, where a token is learned."""
    adapted = adapt("eva", setup(world))
    model = world.stock_model()
    inputs: dict[str, list[NDArray[np.float64]]] = {}
    modules = dict(model.named_modules())
    for name in (found for found in lora_layers(adapted.model)):
        modules[name].register_forward_hook(
            lambda _module, args, _output, name=name: inputs.setdefault(name, []).append(
                args[0].reshape(-1, args[0].shape[-1]).double().numpy()
            )
        )
    for index in range(SAMPLES):
        with torch.no_grad():
            batch = reference_batch(world, [index])
            model(**batch)
        for states in inputs.values():
            # Positions 4 ... n - 1 predict the caption and its EOS.
            states[-1] = states[-1][4 : batch["input_ids"].shape[1] - 1]
    total = 0
    for name, (weight_a, weight_b) in matrices(adapted).items():
        states = np.concatenate(inputs[name])
        _, _, right = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
        assert torch.count_nonzero(weight_b) == 0
        total += len(weight_a)
        first = weight_a[0].double().numpy()
        # PEFT stops when components change by a cosine of less than 0.99.
        assert abs(first @ right[0]) / np.linalg.norm(first) > 0.9, name
    assert total == 12, "rank moves between modules, its sum stays"


def test_eva_has_a_label_mask_that_works() -> None:
    """It did nothing before PEFT 0.20."""
    assert Version(peft.__version__) >= Version("0.21")


def test_mica_writes_where_the_weight_hardly_does(world: SmallWorld) -> None:
    adapted = adapt("mica", setup(world, rank=2))
    for name, weight in base_weights(adapted).items():
        weight_a, weight_b = matrices(adapted)[name]
        left, _, _ = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        overlap = np.linalg.norm(left[:, -2:].T @ weight_b.double().numpy())
        assert overlap == pytest.approx(2**0.5, abs=1e-4) and torch.count_nonzero(weight_a) == 0
    learned = [name for name, value in adapted.model.named_parameters() if value.requires_grad]
    assert len(learned) == 12 and all(".lora_A." in name for name in learned)


def test_lora_ga_starts_from_the_first_gradient(world: SmallWorld) -> None:
    """A spans the leading right singular vector of the gradient, B the second left one."""
    model = world.stock_model()
    adapted = adapt("lora-ga", setup(world))
    names = [name for name in lora_layers(adapted.model)]
    for name in names:
        model.get_submodule(name).weight.requires_grad_(True)
    model(**reference_batch(world, list(range(24)))).loss.backward()
    for name in names:
        gradient: Any = model.get_submodule(name).weight.grad
        left, _, right = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
        weight_a, weight_b = (one.double().numpy() for one in matrices(adapted)[name])
        assert abs(weight_a[0] @ right[0]) == pytest.approx(np.linalg.norm(weight_a), rel=1e-3)
        assert abs(left[:, 1] @ weight_b[:, 0]) == pytest.approx(np.linalg.norm(weight_b), rel=1e-2)


def test_corda_weighs_directions_by_what_the_module_reads(world: SmallWorld) -> None:
    """W0 C = U S V^T with C the covariance of the inputs: B is along the first column of U."""
    adapted = adapt("corda", setup(world))
    model = world.stock_model()
    name = next(iter(lora_layers(adapted.model)))
    module = model.get_submodule(name)
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0].double()))
    covariance = torch.zeros(32, 32, dtype=torch.float64)
    for index in range(SAMPLES):
        batch = reference_batch(world, [index])
        with torch.no_grad():
            model(**batch)
        states = seen[-1][: batch["input_ids"].shape[1] - 1]  # EOS itself is never read
        states = states / states.max().abs()
        covariance += states.T @ states / SAMPLES
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(32)
    left, _, _ = torch.linalg.svd(module.weight.double() @ covariance)
    _, weight_b = matrices(adapted)[name]
    cosine = torch.cosine_similarity(left[:, 0], weight_b[:, 0].double(), dim=0)
    assert abs(cosine.item()) == pytest.approx(1.0, abs=1e-3)
    assert not any(hasattr(one, "eigens") for one in adapted.model.modules())


def test_nf4_puts_every_weight_on_the_nearest_level_of_its_block() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(7, 50, generator=generator)
    weight[2] = 0.0
    found = quantise(weight)
    flat = weight.flatten().double().numpy()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        levels = np.array(LEVELS) * np.abs(block).max()
        nearest = levels[np.abs(block[:, None] - levels).argmin(axis=1)]
        np.testing.assert_allclose(found.flatten()[start : start + BLOCK], nearest, atol=1e-6)
    assert torch.equal(quantise(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert torch.equal(quantise(found), found), "what is on the levels stays"
    # QLoRA, Appendix E: the quantiles of a normal distribution, 0 and both ends among them.
    assert len(LEVELS) == 16 and LEVELS[0] == -1 and LEVELS[7] == 0 and LEVELS[15] == 1
    normal = torch.distributions.Normal(0.0, 1.0)
    upper = normal.icdf(torch.linspace(0.5, 0.9677083, 9)[1:])
    lower = normal.icdf(torch.linspace(0.5, 0.9677083, 8)[1:])
    expected = torch.cat([-lower.flip(0) / lower.max(), torch.zeros(1), upper / upper.max()])
    torch.testing.assert_close(torch.tensor(LEVELS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_loftq_is_nearer_to_the_weight_than_quantising_alone(world: SmallWorld, rank: int) -> None:
    stock = world.stock_model()
    adapted = adapt("loftq", setup(world, rank=rank, alpha=2.0 * rank))
    for name, layer in lora_layers(adapted.model).items():
        weight: Any = stock.get_submodule(name).weight.detach()
        base = layer.get_base_layer().weight.detach()
        assert torch.equal(base, quantise(weight))
        together = base + layer.get_delta_weight("default")
        # By Eckart and Young the best that rank r can do for the error.
        values = torch.linalg.svdvals((weight - base).double())
        expected = values[rank:].square().sum().sqrt().item()
        assert (weight - together).double().norm().item() == pytest.approx(expected, rel=1e-4)
        assert expected < (weight - base).norm()
    one, more = (loftq_matrices(weight, rank, iterations) for iterations in (1, 5))
    error = [(weight - (q + b @ a)).norm().item() for q, a, b in (one, more)]
    assert error[1] < error[0] * 1.05


def test_qpissa_quantises_what_pissa_leaves(world: SmallWorld) -> None:
    """A and B are kept as they are: the quantiser never sees the leading triplets."""
    pissa, quantised = (adapt(method, setup(world, rank=2)) for method in ("pissa", "qpissa"))
    residuals = base_weights(pissa)
    for name, weight in base_weights(quantised).items():
        assert torch.equal(weight, quantise(residuals[name]))
    for name, (weight_a, weight_b) in matrices(pissa).items():
        assert torch.equal(matrices(quantised)[name][0], weight_a)
        assert torch.equal(matrices(quantised)[name][1], weight_b)


def test_why_loftq_is_not_pefts(world: SmallWorld) -> None:
    """PEFT's needs bitsandbytes and a CUDA device. When this fails, use PEFT's."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        loftq_init(torch.randn(8, 8), num_bits=4, reduced_rank=1, num_iter=1)

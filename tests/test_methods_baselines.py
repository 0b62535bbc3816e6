"""Baselines: each starts as PEFT's own initialiser does, and its saved adapter loads anywhere."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.loftq_utils import loftq_init
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapinit.adapters.files import BASE_WEIGHTS, load_adapter, save_adapter
from gapinit.adapters.lora import lora_layers
from gapinit.adapters.methods.loftq import loftq
from gapinit.adapters.methods.setup import Adapted, adapt
from gapinit.adapters.nf4 import BLOCK, LEVELS, quantise
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError

from .method_cases import (
    BASELINES,
    CONVERTED,
    QUANTISED,
    logits,
    losses,
    matrices,
    ranks,
    setup,
)
from .plain_json import names
from .small_backbone import SmallWorld, make_backbone, reference_batch, small_world

# The tests call plain PEFT, which asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

PREFIX = "base_model.model."


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def base_weights(adapted: Adapted) -> dict[str, Tensor]:
    return {
        name.removeprefix(PREFIX): layer.get_base_layer().weight.detach()
        for name, layer in lora_layers(adapted.model).items()
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.mark.parametrize(("method", "rank"), ranks(BASELINES, 1, 4))
def test_outputs_at_step_0_are_the_bases(world: SmallWorld, method: str, rank: int) -> None:
    """Those of a quantised base too, up to what quantising loses."""
    batch = reference_batch(world, [0, 50])
    expected = logits(world.stock_model(), batch)
    adapted = adapt(method, setup(world, rank=rank, alpha=2.0 * rank))
    assert adapted.changes_base == (method in [*QUANTISED, *CONVERTED])
    assert adapted.saves_base == (method in QUANTISED)
    found = logits(adapted.model, batch)
    if method in QUANTISED:
        assert 0.01 < relative(found, expected) < 0.25
    else:
        assert relative(found, expected) < 2e-6
    changed = [
        not torch.equal(weight, world.stock_model().get_submodule(name).weight)
        for name, weight in list(base_weights(adapted).items())[:2]
    ]
    assert all(changed) if adapted.changes_base else not any(changed)


@pytest.mark.parametrize(("method", "rank"), ranks(BASELINES, 1, 2))
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
    untrained = logits(world.stock_model(), batch)
    assert (expected - untrained).abs().max() > 1e-2, "training moved the outputs"
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


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_trains_repeats_and_loads(world: SmallWorld, method: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name))  # whatever ran before
        world.train(tmp_path / name, method, batch_size=60, epochs=2, learning_rate=5e-3)
    files = ["adapter/adapter_model.safetensors", "steps.csv"]
    files += [f"adapter/{BASE_WEIGHTS}"] if method in QUANTISED else []
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two, file
    record = read_json(tmp_path / "one" / "run.json")
    assert record["changes_base"] == (method in [*QUANTISED, *CONVERTED])
    assert record["versions"]["peft"] == peft.__version__
    backbone = load_backbone(world.backbone)
    batch = reference_batch(world, list(range(0, 120, 5)))
    loaded = load_adapter(backbone, tmp_path / "one" / "adapter")
    assert (logits(loaded, batch) - logits(world.stock_model(), batch)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("pissa-16", {"init_lora_weights": "pissa_niter_16"}),
        ("olora", {"init_lora_weights": "olora"}),
        ("orthogonal", {"init_lora_weights": "orthogonal"}),
        ("mica", {"init_lora_weights": "mica"}),
        ("dora", {"use_dora": True}),
    ],
)
def test_what_needs_no_data_is_stock_peft(
    world: SmallWorld, method: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(12)
    ours = adapt(method, setup(world, rank=2, alpha=4.0)).model
    torch.manual_seed(12)
    names = [name.removeprefix(PREFIX) for name in lora_layers(ours)]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=names, **options)
    stock = get_peft_model(world.stock_model(), config)
    found, expected = ours.state_dict(), stock.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    learned = {name for name, value in ours.named_parameters() if value.requires_grad}
    assert learned == {name for name, value in stock.named_parameters() if value.requires_grad}


def test_eva_takes_the_principal_components_of_the_learned_positions(world: SmallWorld) -> None:
    """Against numpy's SVD of the inputs of the whole stock model, where a token is learned."""
    adapted = adapt("eva", setup(world))
    model = world.stock_model()
    inputs: dict[str, list[NDArray[np.float64]]] = {}
    modules = dict(model.named_modules())
    for name in (found.removeprefix(PREFIX) for found in lora_layers(adapted.model)):
        modules[name].register_forward_hook(
            lambda _module, args, _output, name=name: inputs.setdefault(name, []).append(
                args[0].reshape(-1, args[0].shape[-1]).double().numpy()
            )
        )
    for index in range(120):
        with torch.no_grad():
            batch = reference_batch(world, [index])
            model(**batch)
        for states in inputs.values():
            # Positions 4 ... n - 1 predict the caption and its EOS.
            states[-1] = states[-1][4 : batch["input_ids"].shape[1] - 1]
    total = 0
    for name, (weight_a, weight_b) in matrices(adapted).items():
        states = np.concatenate(inputs[name.removeprefix(PREFIX)])
        _, _, right = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
        assert torch.count_nonzero(weight_b) == 0
        total += len(weight_a)
        first = weight_a[0].double().numpy()
        # PEFT stops when components change by a cosine of less than 0.99.
        assert abs(first @ right[0]) / np.linalg.norm(first) > 0.9, name
    assert total == 12, "rank moves between modules, its sum stays"


def test_eva_names_its_modules_in_full(world: SmallWorld, tmp_path: Path) -> None:
    """Trained on the cut tail, it must hit no module of the towers and the layers below."""
    output = world.train(tmp_path / "run", "eva", batch_size=60)
    stock = PeftModel.from_pretrained(world.stock_model(), output / "adapter")
    names = [name.removeprefix(PREFIX) for name in lora_layers(stock)]
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    expected = {name.removeprefix(PREFIX).split(".lora_")[0] for name in saved}
    assert set(names) == expected
    assert all("language_model.model.decoder.layers." in name for name in names)


def test_eva_has_a_label_mask_that_works() -> None:
    """It did nothing before PEFT 0.20."""
    assert Version(peft.__version__) >= Version("0.21")


def test_mica_writes_where_the_weight_hardly_does(world: SmallWorld) -> None:
    adapted = adapt("mica", setup(world, rank=2))
    for name, weight in base_weights(adapted).items():
        weight_a, weight_b = matrices(adapted)[PREFIX + name]
        left, _, _ = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        overlap = np.linalg.norm(left[:, -2:].T @ weight_b.double().numpy())
        assert overlap == pytest.approx(2**0.5, abs=1e-4) and torch.count_nonzero(weight_a) == 0
    learned = [name for name, value in adapted.model.named_parameters() if value.requires_grad]
    assert len(learned) == 12 and all(".lora_A." in name for name in learned)


def test_lora_ga_starts_from_the_first_gradient(world: SmallWorld) -> None:
    """A spans the leading right singular vector of the gradient, B the second left one."""
    model = world.stock_model()
    adapted = adapt("lora-ga", setup(world))
    names = [name.removeprefix(PREFIX) for name in lora_layers(adapted.model)]
    for name in names:
        model.get_submodule(name).weight.requires_grad_(True)
    model(**reference_batch(world, list(range(24)))).loss.backward()
    for name in names:
        gradient: Any = model.get_submodule(name).weight.grad
        left, _, right = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
        weight_a, weight_b = (one.double().numpy() for one in matrices(adapted)[PREFIX + name])
        assert abs(weight_a[0] @ right[0]) == pytest.approx(np.linalg.norm(weight_a), rel=1e-3)
        assert abs(left[:, 1] @ weight_b[:, 0]) == pytest.approx(np.linalg.norm(weight_b), rel=1e-2)


def test_corda_weighs_directions_by_what_the_module_reads(world: SmallWorld) -> None:
    """W0 C = U S V^T with C the covariance of the inputs: B is along the first column of U."""
    adapted = adapt("corda", setup(world))
    model = world.stock_model()
    name = next(iter(lora_layers(adapted.model))).removeprefix(PREFIX)
    module = model.get_submodule(name)
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _module, args, _output: seen.append(args[0][0].double()))
    covariance = torch.zeros(32, 32, dtype=torch.float64)
    for index in range(120):
        batch = reference_batch(world, [index])
        with torch.no_grad():
            model(**batch)
        states = seen[-1][: batch["input_ids"].shape[1] - 1]  # EOS itself is never read
        states = states / states.max().abs()
        covariance += states.T @ states / 120
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(32)
    left, _, _ = torch.linalg.svd(module.weight.double() @ covariance)
    _, weight_b = matrices(adapted)[PREFIX + name]
    cosine = torch.cosine_similarity(left[:, 0], weight_b[:, 0].double(), dim=0)
    assert abs(cosine.item()) == pytest.approx(1.0, abs=1e-3)
    assert not any(hasattr(one, "eigens") for one in adapted.model.modules())


def test_orthogonal_is_for_even_ranks(world: SmallWorld) -> None:
    with pytest.raises(GapinitError, match=r"'rank': .*'orthogonal'.*even ranks only, found 3"):
        adapt("orthogonal", setup(world, rank=3))


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
        weight: Any = stock.get_submodule(name.removeprefix(PREFIX)).weight.detach()
        base = layer.get_base_layer().weight.detach()
        assert torch.equal(base, quantise(weight))
        together = base + layer.get_delta_weight("default")
        # By Eckart and Young the best that rank r can do for the error.
        values = torch.linalg.svdvals((weight - base).double())
        expected = values[rank:].square().sum().sqrt().item()
        assert (weight - together).double().norm().item() == pytest.approx(expected, rel=1e-4)
        assert expected < (weight - base).norm()
    one, more = (loftq(weight, rank, iterations) for iterations in (1, 5))
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


def test_base_weights_of_another_backbone_are_refused(world: SmallWorld, tmp_path: Path) -> None:
    output = world.train(tmp_path / "run", "loftq", batch_size=60)
    folder = output / "adapter"
    captions = [text for image in world.images("train") for text in image.captions]
    make_backbone(tmp_path / "short", captions, decoder_layers=2)
    with pytest.raises(GapinitError, match="which this backbone does not have"):
        load_adapter(load_backbone(tmp_path / "short"), folder)
    weights = load_file(folder / BASE_WEIGHTS)
    name = next(name for name in weights if "q_proj" in name)
    for wrong, message in (
        ({name: torch.zeros(3, 3)}, r"has shape \[3, 3\], but this backbone has \[32, 32\]"),
        ({"nothing.weight": torch.zeros(3)}, r"'nothing.weight' .*this backbone has none"),
    ):
        save_file(wrong, folder / BASE_WEIGHTS)
        with pytest.raises(GapinitError, match=message):
            load_adapter(load_backbone(world.backbone), folder)
    (folder / BASE_WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(GapinitError, match=f"{BASE_WEIGHTS}: damaged"):
        load_adapter(load_backbone(world.backbone), folder)


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
    assert not set("│┃━") & set(done.stdout), "no frames in a pipe"

"""The last layer at some positions only, and a LoRA in one step: the same states and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gapinit.adapters.fused import fuse
from gapinit.adapters.lora import add_lora
from gapinit.backbones.base import Backbone
from gapinit.backbones.last_layer import Rows
from gapinit.backbones.tail import decode_at

from .backbone_cases import CAPTIONS, CASES, Case, World, case_named, pictures
from .small_backbone import randomise, trainable

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def world(request: pytest.FixtureRequest, world_of: Callable[[Case], World]) -> World:
    return world_of(request.param)


def inputs_of(backbone: Backbone) -> Any:
    encoded = backbone.encode_captions(CAPTIONS, 20)
    return backbone.embed(backbone.look(pictures()), [ids for ids, _ in encoded])


def places(inputs: Any) -> Tensor:
    """Some positions of each sequence, with holes, image and head among them; none of one."""
    drawn = torch.rand(inputs.states.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.3
    position = torch.arange(drawn.shape[1])[None]
    drawn &= position < inputs.length[:, None]
    drawn[1] = False
    return drawn


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_at_some_positions_are_those_of_all(world: World, attention: str) -> None:
    backbone = world.backbone()
    backbone.model.set_attn_implementation(attention)
    assert backbone.text_config._attn_implementation == attention
    inputs = inputs_of(backbone)
    where = places(inputs)
    layer = backbone.decoder_layers[-1]
    seen: list[int] = []
    target = layer.mlp if hasattr(layer, "mlp") else layer.fc1
    hook = target.register_forward_hook(
        lambda _, given, __: seen.append(given[0].numel() // given[0].shape[-1])
    )
    with torch.no_grad():
        everything = backbone.decode(inputs)
        some = decode_at(backbone, inputs, where)
        again = backbone.decode(inputs)
    hook.remove()
    torch.testing.assert_close(some, everything[where], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, everything, rtol=0, atol=0)
    most = int(where.sum(dim=1).max())
    assert seen == [where.numel(), len(where) * most, where.numel()], "the MLP saw those rows only"


def test_a_last_layer_across_the_image_is_narrowed_too(
    world_of: Callable[[Case], World],
) -> None:
    """Llama 3.2 Vision cut so that its last layer attends to the image."""
    backbone = world_of(case_named("mllama")).backbone()
    backbone.decoder.layers = backbone.decoder_layers[:4]
    assert hasattr(backbone.decoder_layers[-1], "cross_attn")
    inputs = inputs_of(backbone)
    where = places(inputs)
    with torch.no_grad():
        expected = backbone.decode(inputs)[where]
        torch.testing.assert_close(
            decode_at(backbone, inputs, where), expected, rtol=1e-4, atol=1e-5
        )


def test_a_family_that_does_not_say_how_computes_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = world.backbone()
    inputs = inputs_of(backbone)
    where = places(inputs)
    with torch.no_grad():
        narrowed = decode_at(backbone, inputs, where)
        monkeypatch.setattr(backbone, "last_layer", None)
        torch.testing.assert_close(
            decode_at(backbone, inputs, where), narrowed, rtol=1e-4, atol=1e-5
        )
        assert torch.equal(decode_at(backbone, inputs, where), backbone.decode(inputs)[where])


def test_rows_keep_their_order() -> None:
    where = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    rows = Rows.of(where)
    assert rows.position[0].tolist() == [1, 3, 4] and rows.position[1, 0] == 0
    assert rows.valid.tolist() == [[True] * 3, [True, False, False]]


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_one_step_is_pefts_two(world: World, rank: int, dropout: float) -> None:
    """Output and every gradient, the input's included, with the same dropout masks."""
    found = []
    for fused in (False, True):
        backbone = world.backbone()
        layers = [1, 2]
        count = len(backbone.named_targets(layers))
        model = add_lora(
            backbone, layers, rank=rank, alpha=3 * rank, dropout=dropout, init_lora_weights=True
        )
        randomise(model)
        for name, module in model.named_modules():
            module.train("lora_dropout" in name)
        if fused:
            assert fuse(model) == count
        inputs = inputs_of(backbone)
        torch.manual_seed(4)
        states = backbone.decode(inputs)
        states.square().mean().backward()
        found.append((states.detach(), {n: v.grad for n, v in trainable(model).items()}))
    (plain, expected), (one, gradients) = found
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)
    for name, gradient in expected.items():
        other = gradients[name]
        if gradient is None:  # Llama's cross-attention reads no such position
            assert other is None
            continue
        difference = torch.linalg.vector_norm(gradient - other)
        assert difference <= 1e-4 * torch.linalg.vector_norm(gradient) + 1e-9, name


def test_switched_off_or_merged_it_is_pefts(world: World) -> None:
    backbone = world.backbone()
    inputs = inputs_of(backbone)
    with torch.no_grad():
        bare = backbone.decode(inputs)
        model = add_lora(backbone, [1, 2], rank=1, alpha=2, dropout=0.0, init_lora_weights=True)
        randomise(model)
        fuse(model)
        adapted = backbone.decode(inputs)
        with model.disable_adapter():
            assert torch.equal(backbone.decode(inputs), bare)
        model.merge_adapter()
        torch.testing.assert_close(backbone.decode(inputs), adapted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(adapted, bare, atol=1e-3)


def test_other_kinds_of_lora_are_left_to_peft(world: World) -> None:
    backbone = world.backbone()
    model = add_lora(
        backbone, [1, 2], rank=1, alpha=2, dropout=0.0, init_lora_weights=True, use_dora=True
    )
    assert fuse(model) == 0

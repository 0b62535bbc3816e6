"""A batch without its padding: the same states, gradients and dropout masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gapinit.adapters.fused import fuse
from gapinit.adapters.lora import add_lora
from gapinit.backbones import tail
from gapinit.backbones.padding_free import NAME, Layout
from gapinit.backbones.tail import decode_at
from gapinit.train.dropout import mask_generator, use_own_dropout

from .backbone_cases import CASES, Case, World, pictures
from .small_backbone import randomise, trainable
from .test_last_layer import inputs_of, places

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def world(
    request: pytest.FixtureRequest,
    world_of: Callable[[Case], World],
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.setattr(tail, "LEAST_WIDTH", 0)
    return world_of(request.param)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_states_and_gradients_are_those_of_padded_sequences(
    world: World, first: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for padded in (True, False):
        backbone = world.backbone()
        monkeypatch.setattr(tail, "LEAST_WIDTH", 10**6 if padded else 0)
        backbone.model.double()
        inputs = inputs_of(backbone)
        backbone.cut_below(first)
        layers = range(first, backbone.num_layers)
        model = add_lora(backbone, layers, rank=2, alpha=4, dropout=dropout, init_lora_weights=True)
        model.double()
        randomise(model)
        fuse(model)
        use_own_dropout(model, mask_generator(3, torch.device("cpu")))
        for name, module in model.named_modules():
            module.train("lora_dropout" in name)
        where = places(inputs)
        seen: list[tuple[int, ...]] = []
        backbone.decoder_layers[first].register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(tuple(given[0].shape[:2]))
        )
        states = decode_at(backbone, inputs, where)
        states.square().mean().backward()
        found.append((states.detach(), {n: v.grad for n, v in trainable(model).items()}))
        flat = not padded and not backbone.cross_attends
        assert seen == [(1, int(inputs.length.sum())) if flat else tuple(where.shape)]
        assert backbone.text_config._attn_implementation == "sdpa", "only for this pass"
    (states, gradients), (free, others) = found
    torch.testing.assert_close(free, states, rtol=1e-9, atol=1e-11)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(others[name], gradient, rtol=1e-8, atol=1e-12)


def test_narrow_backbones_and_batches_without_padding_stay_as_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = world.backbone()
    inputs = inputs_of(backbone)
    used: list[Any] = []
    monkeypatch.setattr(tail, "_decode_flat", lambda *_: used.append(1))
    monkeypatch.setattr(tail, "LEAST_WIDTH", backbone.hidden_size + 1)
    with torch.no_grad():
        decode_at(backbone, inputs, places(inputs))
    monkeypatch.setattr(tail, "LEAST_WIDTH", 0)
    texts = [ids for ids, _ in backbone.encode_captions(["a red cube"] * 2, 20)]

    even = backbone.embed(backbone.look(pictures()[:1] * 2), texts)
    with torch.no_grad():
        decode_at(backbone, even, places(even))
    assert not used


def test_an_error_inside_puts_the_models_attention_back(world: World) -> None:
    backbone = world.backbone()
    inputs = inputs_of(backbone)
    backbone.decoder_layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode_at(backbone, inputs, places(inputs))
    assert backbone.text_config._attn_implementation != NAME


def test_a_layout_goes_there_and_back() -> None:
    valid = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    layout = Layout.of(valid)
    flat = torch.arange(12.0).view(1, 6, 2).requires_grad_()
    padded = layout.padded(flat)
    assert padded.shape == (3, 3, 2) and not padded[~valid].any()
    assert torch.equal(padded[valid], flat[0])
    back = layout.flat(padded)
    assert torch.equal(back, flat)
    (back * torch.arange(12.0).view(1, 6, 2)).sum().backward()
    assert flat.grad is not None and torch.equal(flat.grad, torch.arange(12.0).view(1, 6, 2))

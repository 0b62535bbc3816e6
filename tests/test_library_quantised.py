"""Gap-Init on bases that are quantised, unreadable or not in memory."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import gapinit
from gapinit.gap.gap_vectors import GapVectors

from .small_backbone import make_backbone
from .small_library import (
    CAPTIONS,
    Reference,
    SmallLibrary,
    logits,
)
from .small_lora import (
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


@pytest.fixture(scope="module")
def base_logits(library: SmallLibrary, plain: Any) -> Tensor:
    return logits(plain, library)


class Params4bit(nn.Parameter):
    """Stands for bitsandbytes' packed parameter: PEFT knows it by its name."""

    quant_state: Any

    def __deepcopy__(self, memo: Any) -> Params4bit:
        copied = Params4bit(self.data.clone(), requires_grad=False)
        copied.quant_state = self.quant_state
        return copied


class FakeLinear4bit(nn.Linear):
    """A linear module whose weight is whole numbers and a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.bias = linear.bias
        scale = linear.weight.abs().max() / 127
        packed = (linear.weight / scale).round().to(torch.int8)
        self.weight = Params4bit(packed, requires_grad=False)
        self.weight.quant_state = scale

    def forward(self, states: Tensor) -> Tensor:
        weight = self.weight.data.float() * self.weight.quant_state
        return nn.functional.linear(states, weight, self.bias)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_quantised_base(
    library: SmallLibrary,
    plain: Any,
    gap: GapVectors,
    expected: Reference,
    use_dora: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bitsandbytes: Any = ModuleType("bitsandbytes")
    bitsandbytes.functional = SimpleNamespace(
        dequantize_4bit=lambda data, scale: data.float() * scale
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", bitsandbytes)
    quantised = copy.deepcopy(plain)
    for layer in quantised.language_model.model.decoder.layers:
        for name in ("fc1", "fc2"):
            setattr(layer, name, FakeLinear4bit(getattr(layer, name)))
    base = logits(quantised, library)
    own = gapinit.estimate_gap(quantised, library.processor(), library.pairs, progress=False)
    assert own.modules.keys() == gap.modules.keys()
    model = with_lora(quantised, use_dora=use_dora)
    packed = lora(model, FC1).base_layer.weight.data.clone()
    for measured in (gap, own):
        report = gapinit.initialize_lora_gap_weights(model, measured)
        assert report.weights_skipped == 6
        assert "6 of" in str(report) and "quantised" in str(report)
    gapinit.initialize_lora_gap_weights(model, gap)
    for name in (Q, FC1, FC2):
        column = matrices(model, name)[1][:, 0].double()
        cosine = torch.cosine_similarity(column, direction(expected, plain, name), dim=0)
        assert cosine > (0.999 if name == FC1 else 1 - 1e-6)
    assert torch.equal(lora(model, FC1).base_layer.weight.data, packed)
    torch.testing.assert_close(logits(model, library), base, rtol=0, atol=1e-6)
    train_a_step(model, library)


@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=str)
def test_a_base_that_bitsandbytes_quantised(
    library: SmallLibrary, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # Its blocks are of 64 entries.
    wide = replace(library, folder=tmp_path)
    make_backbone(tmp_path, list(CAPTIONS) * 4, vocabulary=300, decoder_width=64)
    others = ["lm_head", "qformer", "vision_model", "language_projection"]
    quantisation = BitsAndBytesConfig(llm_int8_skip_modules=others, **options)
    quantised = wide.model(dtype=torch.float32, quantization_config=quantisation)
    base = logits(quantised, wide)
    full = wide.model()
    gap = gapinit.estimate_gap(full, wide.processor(), wide.pairs, progress=False)
    own = gapinit.estimate_gap(quantised, wide.processor(), wide.pairs, progress=False)
    assert torch.cosine_similarity(own.vectors, gap.vectors, dim=1).min() > 0.97
    config = LoraConfig(r=1, target_modules=gap.target_modules([1, 2]))
    model, reference_model = get_peft_model(quantised, config), get_peft_model(full, config)
    report = gapinit.initialize_lora_gap_weights(model, gap)
    gapinit.initialize_lora_gap_weights(reference_model, gap)
    assert report.weights_skipped == 18
    for name in (Q, FC1, FC2):
        columns = [matrices(one, name)[1][:, 0].double() for one in (model, reference_model)]
        assert torch.cosine_similarity(*columns, dim=0) > 0.98
    torch.testing.assert_close(logits(model, wide), base, rtol=0, atol=1e-6)


def test_a_base_that_cannot_be_read(plain: Any, gap: GapVectors) -> None:
    model = with_lora(plain)
    layer = lora(model, FC1)
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.to("meta"), requires_grad=False)
    refused_meta = pytest.raises(gapinit.GapinitError, match=f"{FC1}: .*not in memory")
    with refused_meta:
        gapinit.initialize_lora_gap_weights(model, gap)
    del layer.base_layer.weight
    layer.base_layer.qweight = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    refused(f"{FC1}: the weight of Linear cannot be read.*coordinates='module'", model, gap)
    report = gapinit.initialize_lora_gap_weights(model, gap, coordinates="module")
    assert len(report.modules) == 12 and report.weights_skipped == 1


def test_an_adapter_and_a_base_that_are_not_in_memory(plain: Any, gap: GapVectors) -> None:
    model = with_lora(plain, target_modules=[Q], low_cpu_mem_usage=True)
    lora(model, Q).base_layer.to("meta")
    with pytest.raises(gapinit.GapinitError, match=f"{Q}: neither adapter nor base weight"):
        gapinit.initialize_lora_gap_weights(model, gap)

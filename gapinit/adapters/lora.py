"""LoRA on a model through PEFT: add an adapter, find its modules, freeze B, silence warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from gapinit.backbones.in_memory import base_modules
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

ADAPTER = "default"


def add_lora(
    backbone: Backbone,
    layers: Sequence[int],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    init_lora_weights: bool | str,
    prepare: Callable[[LoraConfig], None] | None = None,
    vision: bool = False,
    **options: Any,
) -> PeftModel:
    """Add LoRA to the attention and MLP matrices of the given decoder layers.

    `vision`: also to those of the vision tower. `prepare` is called with PEFT's configuration
    before the adapter exists, because some initialisers measure the bare model. `options` are
    passed to that configuration.
    """
    given: dict[str, Any] = {"lora_alpha": alpha, "init_lora_weights": init_lora_weights}
    config = LoraConfig(
        r=rank,
        lora_dropout=dropout,
        target_modules=backbone.target_modules(layers, vision=vision),
        **given,
        **options,
    )
    if prepare is not None:
        prepare(config)
    with no_idle_warnings():
        return get_peft_model(backbone.model, config)


def lora_layers(model: Any, adapter_name: str = ADAPTER) -> dict[str, Any]:
    """Return an adapter's LoRA modules by their names in the plain model, in the model's order.

    Raises GapinitError if there are none.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    # PEFT keeps the matrices of embeddings under another name.
    owners = {
        name: (module, {*module.lora_A.keys(), *module.lora_embedding_A.keys()})
        for name, module in base_modules(plain)
        if isinstance(module, LoraLayer)
    }
    if not owners:
        raise GapinitError(
            "peft_model: it has no LoRA layer. Add an adapter first: "
            "get_peft_model(model, LoraConfig(...))"
        )
    found = {name: module for name, (module, names) in owners.items() if adapter_name in names}
    if not found:
        known = ", ".join(sorted({known for _, names in owners.values() for known in names}))
        raise GapinitError(f"adapter_name: no LoRA adapter '{adapter_name}', expected: {known}")
    return found


def freeze_b(model: PeftModel) -> None:
    """Freeze B: only A is trained."""
    for module in lora_layers(model).values():
        module.lora_B[ADAPTER].weight.requires_grad_(False)


@contextmanager
def no_idle_warnings() -> Iterator[None]:
    """Silence warnings of PEFT that a user cannot act on."""
    with warnings.catch_warnings():
        # PEFT uses the old name of a property of transformers ...
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        # ... and suggests a way to save memory that these adapters do not use.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with")
        yield

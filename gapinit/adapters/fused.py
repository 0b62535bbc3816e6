"""A frozen matrix and its LoRA in one step: y = W x + b + s B A x.

PEFT computes the two terms separately, and scales and adds them in extra passes over the output,
forward and backward. At rank 1 the arithmetic of B A x is negligible, and these passes are most of
the cost of an adapter. Here the matrix product itself adds the second term in place. The gradients:

    dL/dx = W^T g + s A^T B^T g,   dL/dA = s (B^T g) x^T,   dL/dB = s g (A x)^T.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from gapinit.adapters.lora import ADAPTER

if TYPE_CHECKING:
    from peft import PeftModel


def fuse(model: PeftModel) -> int:
    """Let the model's plain LoRA modules compute both terms in one step; return how many do.

    Plain means LoRA without a variant (DoRA) on a linear module of the adapter's dtype. Names,
    weights and saved files do not change; a module whose adapter is disabled or merged runs PEFT's
    own code.
    """
    plain: list[Any] = [module for module in model.modules() if _is_plain(module)]
    for module in plain:
        module.forward = partial(_forward, module)
    return len(plain)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is LoraLinear
        and ADAPTER in module.lora_A
        and type(module.get_base_layer()) is nn.Linear
        and not module.lora_variant
        and not module.lora_bias.get(ADAPTER)
        and module.get_base_layer().weight.dtype == module.lora_A[ADAPTER].weight.dtype
    )


def _forward(module: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    if (
        arguments
        or named
        or module.disable_adapters
        or module.merged
        or module.active_adapters != [ADAPTER]
    ):
        return LoraLinear.forward(module, x, *arguments, **named)
    base, dropout = module.get_base_layer(), module.lora_dropout[ADAPTER]
    dropped = dropout(x) if dropout.training and getattr(dropout, "p", 0) else None
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    found: Tensor = _LowRank.apply(
        x, dropped, base.weight, base.bias, a, b, module.scaling[ADAPTER]
    )
    return found


class _LowRank(torch.autograd.Function):
    """The formulas of this module; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        output = nn.functional.linear(rows, weight, bias)
        inner = (seen @ a.T).mul_(scale)
        output.addmm_(inner, b.T)
        ctx.save_for_backward(seen, inner, weight, a, b)
        ctx.scale, ctx.has_dropout = scale, dropped is not None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        seen, inner, weight, a, b = ctx.saved_tensors
        (gradient,) = gradients
        shape = (*gradient.shape[:-1], weight.shape[1])
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_inner = (rows @ b).mul_(ctx.scale)
        of_x = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_x = rows @ weight
            if not ctx.has_dropout:
                of_x.addmm_(of_inner, a)
            of_x = of_x.view(shape)
        if ctx.needs_input_grad[1]:
            of_dropped = (of_inner @ a).view(shape)
        of_a = of_inner.T @ seen if ctx.needs_input_grad[4] else None
        of_b = rows.T @ inner if ctx.needs_input_grad[5] else None
        return of_x, of_dropped, None, None, of_a, of_b, None

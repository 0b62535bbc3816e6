"""Methods that start from the frozen weight alone, most of them by PEFT's own initialiser."""

from __future__ import annotations

import torch
from torch import Tensor

from gapinit.adapters.lora import ADAPTER, lora_layers
from gapinit.adapters.methods.setup import Adapted, Setup
from gapinit.adapters.nf4 import quantise


def lora_gaussian(setup: Setup) -> Adapted:
    """Standard LoRA as in the paper: A Gaussian, B zero (Hu et al. 2022; paper, Table 13).

    PEFT's "gaussian" draws A with standard deviation 1 / r: at r = 1 that is N(0, 1), so |A| is
    about sqrt(d_in), and with alpha / r = 2 a small B already makes a large update.
    """
    return Adapted(setup.add_lora("gaussian"))


def lora_kaiming(setup: Setup) -> Adapted:
    """LoRA as PEFT initialises it by default: A Kaiming-uniform, B zero.

    It differs from `lora_gaussian` by the scale of A alone, which at rank 1 is large.
    """
    return Adapted(setup.add_lora())


def dora(setup: Setup) -> Adapted:
    """DoRA: direction by a LoRA, magnitude by a vector (Liu et al. 2024; paper, Table 6).

    W = m (W0 + (alpha / r) B A) / |W0 + (alpha / r) B A|, row by row, with m = |W0| at the start
    and trained. A is Kaiming-uniform and B zero, as in LoRA's default.
    """
    return Adapted(setup.add_lora(use_dora=True))


def orthogonal(setup: Setup) -> Adapted:
    """Orthogonal LoRA: A and B random in complementary halves of rank space (after Datta 2024).

    With Q a random orthogonal r x r matrix, B = P Q_even and A = (R Q_odd)^T with P and R Gaussian,
    so that B A = 0 although neither is zero. Even ranks only: Q has as many odd as even rows.
    """
    return Adapted(setup.add_lora("orthogonal"))


def mica(setup: Setup) -> Adapted:
    """MiCA: B from the minor left singular vectors of W0, A zero, B not trained (2604.01694).

    W0 = U S V^T; B takes the last r columns of U, those of the smallest singular values. PEFT
    freezes B, so that the adapter writes only where W0 hardly does.
    """
    return Adapted(setup.add_lora("mica"))


def pissa(setup: Setup) -> Adapted:
    """PiSSA: A and B from the leading singular triplets of W0 (Meng et al. 2024).

    The base keeps the residual, W0 - (alpha / r) B A, so the saved adapter has to be converted to
    work on the untouched base.
    """
    return Adapted(setup.add_lora("pissa"), changes_base=True)


def pissa_16(setup: Setup) -> Adapted:
    """PiSSA by a randomised SVD with 16 power iterations (the dynamics study's setting).

    Faster than the exact SVD on wide matrices. The triplets are approximate; base plus adapter is
    W0 all the same, since the base keeps what the adapter does not hold.
    """
    return Adapted(setup.add_lora("pissa_niter_16"), changes_base=True)


def olora(setup: Setup) -> Adapted:
    """OLoRA: B and A from the QR decomposition of W0 (Büyükakyüz 2024).

    W0 = Q R; B takes the first r columns of Q, A the first r rows of R. The base keeps
    W0 - (alpha / r) B A, as PiSSA's does.
    """
    return Adapted(setup.add_lora("olora"), changes_base=True)


@torch.no_grad()
def qpissa(setup: Setup) -> Adapted:
    """QPiSSA: PiSSA whose residual is quantised to 4 bits (Meng et al. 2024).

    W0 = (alpha / r) B A + R with the leading singular triplets in B A; the base becomes NF4(R). R
    lacks the large triplets, so it is quantised with less error than W0 would be.
    """
    # ASSUME: one pass; the paper also alternates SVD and quantisation, as LoftQ does.
    model = setup.add_lora("pissa")
    for module in lora_layers(model).values():
        base = module.get_base_layer().weight
        base.copy_(quantise(base.float()))
    return Adapted(model, changes_base=True, saves_base=True)


@torch.no_grad()
def loftq(setup: Setup) -> Adapted:
    """LoftQ: a base quantised to 4 bits, and a LoRA that starts from the error (Li et al. 2023).

    PEFT's own initialiser needs bitsandbytes and moves every weight to a CUDA device, whatever
    device the model is on; this one does the same arithmetic anywhere, with PEFT's one iteration.
    """
    model = setup.add_lora()
    for module in lora_layers(model).values():
        base = module.get_base_layer().weight
        quantised, weight_a, weight_b = loftq_matrices(base.float(), setup.rank, iterations=1)
        base.copy_(quantised)
        # ASSUME: the adapter makes up for the error as it is scaled, (alpha / r) B A. PEFT leaves
        # the scale out, so that at alpha = 2 r it would add the correction twice.
        scale = module.scaling[ADAPTER] ** 0.5
        module.lora_A[ADAPTER].weight.copy_(weight_a / scale)
        module.lora_B[ADAPTER].weight.copy_(weight_b / scale)
    return Adapted(model, changes_base=True, saves_base=True)


def loftq_matrices(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, A and B with Q + B A near to W0 (Li et al. 2023, Algorithm 1).

    Q = NF4(W0 - B A) and B A = the best rank-r approximation of W0 - Q, in turn.
    """
    remainder = weight
    for _ in range(iterations):
        quantised = quantise(remainder)
        left, values, right = torch.linalg.svd(weight - quantised, full_matrices=False)
        root = values[:rank].sqrt()
        weight_a, weight_b = root[:, None] * right[:rank], left[:, :rank] * root
        remainder = weight - weight_b @ weight_a
    return quantised, weight_a, weight_b

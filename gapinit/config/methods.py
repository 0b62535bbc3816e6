"""The registry of methods, which experiment rows select by name.

It imports neither torch nor PEFT: the Snakefile reads it at every parse. To add a method, add one
function to a module of `gapinit.adapters.methods` and one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gapinit.errors import GapinitError


@dataclass(frozen=True)
class Method:
    """The facts about a method that the workflow needs for planning."""

    name: str
    label: str
    adapt: str
    """Function that makes the adapter, as "module:function" in `gapinit.adapters.methods`; empty:
    untrained."""
    uses_gap: bool = False
    """Whether its initial weights depend on a gap file, hence on a calibration set."""
    takes_noise: bool = False
    """Whether its direction can be perturbed (paper, Appendix E)."""
    even_rank: bool = False
    """Whether only even ranks are allowed."""
    source: str = ""
    needs: Literal["nothing", "calibration pairs", "training batches"] = "nothing"
    """Data that determine its initial weights."""
    applies: str = "any rank"
    """Ranks and modules that it supports, and its effect on the base."""


_WIDTH = "any rank; modules that read or write the hidden width"
_CHANGES_BASE = "any rank; changes the base, saved as twice the rank"
_SAVES_BASE = "any rank; changes the base, saved beside the adapter"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "zero-shot", "Zero-shot", "", source="the backbone as pretrained", applies="untrained"
        ),
        Method(
            "lora-gaussian",
            "Standard LoRA (Gaussian A)",
            "weight_space:lora_gaussian",
            source="Hu et al. 2022; the paper's baseline (Table 13)",
        ),
        Method(
            "lora-kaiming",
            "LoRA (PEFT default, Kaiming A)",
            "weight_space:lora_kaiming",
            source="Hu et al. 2022 as in PEFT's default initialisation",
        ),
        Method(
            "pissa", "PiSSA", "weight_space:pissa", source="Meng et al. 2024", applies=_CHANGES_BASE
        ),
        Method(
            "pissa-16",
            "PiSSA (fast SVD, 16 iterations)",
            "weight_space:pissa_16",
            source="Meng et al. 2024; the dynamics study's setting",
            applies=_CHANGES_BASE,
        ),
        Method(
            "qpissa",
            "QPiSSA (NF4 residual)",
            "weight_space:qpissa",
            source="Meng et al. 2024; the ablation that the dynamics study left open",
            applies=_SAVES_BASE,
        ),
        Method(
            "loftq",
            "LoftQ (NF4, 1 iteration)",
            "weight_space:loftq",
            source="Li et al. 2023",
            applies=_SAVES_BASE,
        ),
        Method("dora", "DoRA", "weight_space:dora", source="Liu et al. 2024; the paper's Table 6"),
        Method(
            "eva",
            "EVA",
            "activation_space:eva",
            source="Paischer et al. 2024",
            needs="training batches",
            applies="any mean rank; moves rank between modules",
        ),
        Method(
            "olora", "OLoRA", "weight_space:olora", source="Büyükakyüz 2024", applies=_CHANGES_BASE
        ),
        Method(
            "orthogonal",
            "Orthogonal LoRA",
            "weight_space:orthogonal",
            even_rank=True,
            source="PEFT, after Datta 2024",
            applies="even rank",
        ),
        Method(
            "corda",
            "CorDA (instruction-previewed)",
            "activation_space:corda",
            source="Yang et al. 2024",
            needs="training batches",
            applies=_CHANGES_BASE,
        ),
        Method(
            "lora-ga",
            "LoRA-GA",
            "gradient_space:lora_ga",
            source="Wang et al. 2024",
            needs="training batches",
            applies="2 x rank up to the width; changes the base, saved as twice the rank",
        ),
        Method(
            "mica",
            "MiCA (minor singular directions)",
            "weight_space:mica",
            source="MiCA, arXiv:2604.01694; A = 0, B frozen",
        ),
        Method(
            "gap-init",
            "Gap-Init",
            "gap:gap_init",
            uses_gap=True,
            takes_noise=True,
            source="When Is Rank-1 Enough?, Algorithm 1",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "random-b",
            "Random B, zero A",
            "controls:random_b",
            source="control: Gap-Init's zeroed matrix without the gap",
        ),
        Method(
            "orthogonal-to-gap",
            "B orthogonal to the gap",
            "controls:orthogonal_to_gap",
            uses_gap=True,
            source="control: a random B with the gap projected out",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "text-mean",
            "B along the text mean",
            "controls:text_mean",
            uses_gap=True,
            source="control: one of the gap's two ends",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "vision-mean",
            "B along the vision mean",
            "controls:vision_mean",
            uses_gap=True,
            source="control: the gap's other end",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "gradient",
            "B along the first gradient",
            "gradient_space:gradient",
            source="control: the best possible first step",
            needs="training batches",
        ),
        Method(
            "gap-other-layer",
            "Gap of another layer",
            "controls:gap_other_layer",
            uses_gap=True,
            source="control: a gap, but not this layer's",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "gap-module",
            "Gap of the module's own output",
            "gap:gap_module",
            source="Gap-Init with `coordinates: module`",
            needs="training batches",
        ),
        Method(
            "gap-init-frozen-b",
            "Gap-Init, B frozen",
            "gap:gap_init_frozen_b",
            uses_gap=True,
            takes_noise=True,
            source="control: the direction alone, never corrected",
            needs="calibration pairs",
            applies=_WIDTH,
        ),
        Method(
            "random-b-frozen-b",
            "Random B, zero A, B frozen",
            "controls:random_b_frozen_b",
            source="control: a random direction, never corrected",
        ),
    )
}


def require_rank(method: str, rank: int, origin: str) -> None:
    """Raise GapinitError unless the method supports this rank."""
    if METHODS[method].even_rank and rank % 2:
        raise GapinitError(
            f"{origin}: key 'rank': method '{method}' needs an even rank, found {rank}"
        )

"""Methods that a run can name: one small module each, chosen by name in an experiment row.

This file only lists them and imports neither torch nor PEFT: the Snakefile reads it at every
parse. To add a method, add one module with an `adapt` function and one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What the workflow has to know of a method before it runs."""

    name: str
    label: str
    module: str
    """Module of `gapinit.methods` whose `adapt` makes the adapter; empty: nothing is trained."""
    uses_gap: bool = False
    """Whether its initial weights depend on a gap vector, so on a calibration set and noise."""
    source: str = ""


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("zero-shot", "Zero-shot", "", source="the backbone as pretrained"),
        Method(
            "lora-gaussian",
            "Standard LoRA (Gaussian A)",
            "lora_gaussian",
            source="Hu et al. 2022; the paper's baseline (Table 13)",
        ),
        Method(
            "lora-kaiming",
            "LoRA (PEFT default, Kaiming A)",
            "lora_kaiming",
            source="Hu et al. 2022 as in PEFT's default initialisation",
        ),
        Method("pissa", "PiSSA", "pissa", source="Meng et al. 2024"),
        Method(
            "gap-init",
            "Gap-Init",
            "gap_init",
            uses_gap=True,
            source="When Is Rank-1 Enough?, Algorithm 1",
        ),
        Method(
            "random-b",
            "Random B, zero A",
            "random_b",
            source="control: Gap-Init's zeroed matrix without the gap",
        ),
    )
}

"""`make chaos`: kills, faults and bad input, against the workflow and its stages as they are."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from ..small_backbone import small_world
from . import faults, inputs
from .goods import make_goods
from .grid import finish
from .kills import QUOTAS, SEED, Kills, kill_test

KILLS = 60
"""As many at least, if the time allows: the grid is run and killed again until then."""


def main() -> int:
    """Print kills and faults survived, inputs tried, and what differed; 1 if anything did."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--inputs", type=int, default=800, help="damaged files; 0: every one")
    parser.add_argument("--minutes", type=float, default=25, help="after which nothing is killed")
    parser.add_argument("--only", choices=("kills", "faults", "inputs"), help="one part")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gapinit chaos ") as name:
        root = Path(name)
        if given.only in (None, "inputs", "faults"):
            goods = make_goods(root / "goods", small_world(root))
        if given.only in (None, "inputs"):
            began = time.monotonic()
            tried, found = inputs.run(goods, root / "inputs", given.inputs or None, given.seed)
            _say("inputs tried", tried, len(found), began)
            wrong += found
        if given.only in (None, "faults"):
            began = time.monotonic()
            ended = faults.run(goods, root / "faults")
            found = [f"{fault}: {problem}" for fault, problem in ended if problem is not None]
            _say("faults survived", len(ended) - len(found), len(found), began)
            wrong += found
        if given.only in (None, "kills"):
            wrong += _kills(root, given.seed, given.minutes)
    for line in wrong:
        print(f"DIFFERED {line}", flush=True)
    print("nothing differed" if not wrong else f"{len(wrong)} differed")
    return 1 if wrong else 0


def _kills(root: Path, seed: int, minutes: float) -> list[str]:
    print("kills: the undisturbed run", flush=True)
    reference = root / "undisturbed"
    status = finish(reference, root / "undisturbed.log")
    if status != 0:
        return [(root / "undisturbed.log").read_text()[-3000:]]
    began, rounds = time.monotonic(), list[Kills]()
    hit = Counter[str]()
    while sum(found.kills for found in rounds) < KILLS:
        left = minutes - (time.monotonic() - began) / 60
        if rounds and left < 1:
            break
        folder = root / f"killed {len(rounds) + 1}"
        rounds.append(kill_test(folder, reference, seed=seed + len(rounds), minutes=left))
        hit += rounds[-1].hit
    problems = [line for found in rounds for line in found.wrong]
    problems += [f"never killed in {stage}" for stage in QUOTAS if not hit[stage]]
    _say("kills survived", sum(found.kills for found in rounds), len(problems), began)
    by_stage = ", ".join(f"{stage} {hit[stage]}" for stage in QUOTAS)
    resumed = sum(found.resumed for found in rounds)
    print(f"  running when killed: {by_stage}; resumed within a stage: {resumed}")
    compared = sum(found.compared for found in rounds)
    print(f"  files compared with the undisturbed run: {compared}; runs killed: {len(rounds)}")
    return problems


def _say(what: str, number: int, wrong: int, began: float) -> None:
    print(f"{what}: {number}, differed: {wrong} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())

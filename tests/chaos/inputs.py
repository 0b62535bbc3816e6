"""Bad input: hundreds of damaged files of every kind, each given to the stage that reads it.

What may come of it: a message that names the file, or the right result. A traceback, a hang, a
file left behind, or another number without a word is a defect of gapinit.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plain_json import forget_digests
from . import mutate
from .isolated import SECONDS, Outcome, isolated
from .mutate_arrays import of_hdf5, of_safetensors
from .targets import Target, content_of, targets

SEED = 8


@dataclass(frozen=True)
class Case:
    """One damage of one file; `recorded`: its digest stands beside it, as its stage left it."""

    target: Target
    name: str
    damage: mutate.Damage
    recorded: bool

    def __str__(self) -> str:
        origin = "ours" if self.recorded else "foreign"
        return f"{self.target.folder}/{self.target.file} ({origin}): {self.name}"


def cases(goods: Mapping[str, Path], seed: int = SEED) -> list[Case]:
    """Return every case, in an order that the seed decides."""
    found: list[Case] = []
    for target in targets(goods):
        draw = random.Random(f"{seed} {target.folder}/{target.file}")
        for damage in _damages(target, goods[target.folder] / target.file, draw):
            found += [
                Case(target, damage[0], damage, recorded)
                for recorded in ((False,) if target.untrusted else (True, False))
            ]
    random.Random(seed).shuffle(found)
    return found


def _damages(target: Target, path: Path, draw: random.Random) -> Iterator[mutate.Damage]:
    yield from mutate.of_any_file(draw)
    yield from mutate.flips(draw, 8)
    if target.kind == "hdf5":
        yield from of_hdf5(path)
    elif target.kind == "safetensors":
        yield from of_safetensors(draw)
    elif target.kind != "image":
        yield from mutate.of_text(draw)
    if target.kind in ("json", "lines"):
        count = 12 if target.folder == "karpathy" else 22
        yield from mutate.of_json(content_of(path, target.kind), draw, count)
    elif target.kind == "yaml":
        yield from mutate.of_yaml(content_of(path, target.kind), draw, 30)


def tried(case: Case, goods: Mapping[str, Path], scratch: Path, good: Any) -> str | None:
    """Damage a copy, read it, and return what is wrong with how that ended; None: nothing."""
    root = scratch / "case"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(goods[case.target.folder], root, symlinks=True)
    path = root / case.target.file
    before = path.read_bytes()
    case.damage[1](path)
    if not case.recorded:
        forget_digests(path)
    present = _names(root)
    outcome = isolated(lambda: case.target.call(root), memory=4 << 30)
    problem = judged(outcome, case, path, before, good)
    left = sorted(_names(root) - present)
    if problem is None and left:
        problem = f"left behind: {', '.join(left)}"
    shutil.rmtree(root, ignore_errors=True)
    return problem


def judged(outcome: Outcome, case: Case, path: Path, before: bytes, good: Any) -> str | None:
    """Return what is wrong with an outcome."""
    if outcome.kind in ("defect", "hang", "death"):
        return f"{outcome.kind}: {outcome.text[-1500:]}"
    if outcome.kind == "error":
        # The file, its folder (a backbone's), or what a dataset's entries name.
        named = (path.name, path.stem, path.parent.name)
        return None if any(one in outcome.text for one in named) else f"not named: {outcome.text}"
    same = path.is_file() and path.read_bytes() == before
    if case.recorded and not same and outcome.value != good:
        return "another result without a word"
    if case.recorded and not same and case.target.kind in ("hdf5", "safetensors"):
        return "an altered file was read without a word"
    return None


def _names(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if "sha256-read" not in path.name
    }


def run(
    goods: Mapping[str, Path], scratch: Path, limit: int | None = None, seed: int = SEED
) -> tuple[int, list[str]]:
    """Try every case, or the first `limit`; return how many, and what went wrong."""
    chosen = cases(goods, seed)[:limit]
    scratch.mkdir(parents=True, exist_ok=True)
    # The good result of each target, computed once and in a process of its own as well.
    good: dict[tuple[str, str], Any] = {}
    wrong = []
    for case in chosen:
        key = (case.target.folder, case.target.file)
        if key not in good:
            root = scratch / "good"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(goods[case.target.folder], root, symlinks=True)
            target = case.target
            outcome = isolated(lambda t=target, r=root: t.call(r), seconds=SECONDS * 3)
            assert outcome.kind == "result", f"the good {key} is refused: {outcome}"
            good[key] = outcome.value
        problem = tried(case, goods, scratch, good[key])
        if problem is not None:
            wrong.append(f"{case}: {problem}")
    return len(chosen), wrong

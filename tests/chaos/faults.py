"""Faults around the stages: no room, no rights, no memory, no Java, other bytes, odd clocks.

Each: a message that names the file and the way out, nothing under a final name that is not whole;
and once the cause is gone, the same call completes with the result of an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.java import find_java
from gapinit.evaluate.predict import extract_features
from gapinit.states.states import extract_states

from ..small_backbone import LAYERS, SmallWorld
from . import targets as made
from . import workflow
from .disks import full_disk, read_only, same
from .goods import make_gap, make_trunk
from .isolated import isolated
from .mutate import flipped
from .stages import stages

ODD = 'it\'s "odd" $(touch pwned) `x`; ünï 日 \n line'


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte flipped": lambda path: path.write_bytes(
        flipped(path.read_bytes(), path.stat().st_size * 2 // 3, 3)
    ),
    "emptied": lambda path: path.write_bytes(b""),
    "swapped": lambda path: shutil.copyfile(_other(path), path),
}


def _other(path: Path) -> Path:
    return path.with_name(f"other-{path.name}")


def between(goods: dict[str, Path], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Damage what one stage wrote before the next one reads it; then make it again."""
    for file, make, read in (
        ("states.h5", lambda r, o: extract_again(r, o), made.gap_of),
        ("gap.h5", lambda r, o: make_gap(r / "states.h5", o), made.gap_read),
        ("trunk_naive.h5", lambda r, o: make_trunk(SmallWorld(r), o), made.trunk_read),
        ("features.h5", made_features, made.predictions),
        ("layers.json", lambda r, o: write_json(o, LAYERS), made.trunk_made),
        ("run/adapter/adapter_model.safetensors", made_adapter, made.adapter_read),
    ):
        for name, damage in DAMAGES.items():
            root = folder / "between"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(goods["world"], root)
            path = root / file
            content = bytearray(path.read_bytes())
            content[-9] ^= 1
            _other(path).write_bytes(content)
            good = isolated(lambda r=root, c=read: c(r))
            damage(path)
            outcome = isolated(lambda r=root, c=read: c(r))
            problem = None
            if outcome.kind != "error" or path.name not in outcome.text:
                problem = f"{outcome.kind}: {outcome.text[-500:]}"
            elif "again" not in outcome.text:
                problem = f"no way out in: {outcome.text}"
            else:
                path.unlink()
                isolated(lambda r=root, p=path, m=make: m(r, p))
                again = isolated(lambda r=root, c=read: c(r))
                if (again.kind, again.value) != (good.kind, good.value):
                    problem = f"made again, it does not complete: {again}"
            yield f"{file} {name} between stages", problem


def extract_again(root: Path, output: Path) -> None:
    small = SmallWorld(root)
    extract_states(small.backbone, small.manifest, output, pairs=20, seed=0)


def made_features(root: Path, output: Path) -> None:
    small = SmallWorld(root)
    extract_features(small.backbone, small.manifest, output)


def made_adapter(root: Path, _output: Path) -> None:
    SmallWorld(root).train(root / "run")


def java(
    goods: dict[str, Path], folder: Path, metrics: Sequence[str] = ("cider", "meteor")
) -> Iterator[tuple[str, str | None]]:
    """Score captions without a Java, and with one that dies in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    real, scores = find_java(), goods["scores"]
    programs = {
        "missing": None,
        "dies at once": "#!/bin/sh\nexit 3\n",
        "dies in the middle": "#!/bin/sh\nhead -c 20 >/dev/null\necho half\nkill -9 $$\n",
        "says nonsense": "#!/bin/sh\necho nonsense\ncat >/dev/null\n",
    }
    output = folder / "scores.json"

    def call(program: str | None) -> Any:
        names = (scores / "captions.json", scores / "said.json")
        return score_captions(*names, output, list(metrics), java=program)

    good = isolated(lambda: call(str(real)))
    output.unlink()
    for name, text in programs.items():
        program = folder / f"java {name}"
        if text is not None:
            program.write_text(text)
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        outcome = isolated(lambda p=program: call(str(p)))
        problem = None
        if outcome.kind != "error" or "ava" not in outcome.text:
            problem = f"{outcome.kind}: {outcome.text[-500:]}"
        elif output.exists():
            problem = "scores were written"
        else:
            again = isolated(lambda: call(str(real)))
            if again.value != good.value:
                problem = f"with a good Java: {again}"
            output.unlink(missing_ok=True)
        yield f"Java {name}", problem
    os.environ["JAVA_TOOL_OPTIONS"] = "-Duser.language=de -Duser.country=DE"
    os.environ["LC_ALL"] = os.environ["LC_NUMERIC"] = "de_DE.UTF-8"
    try:
        outcome = isolated(lambda: call(str(real)))
    finally:
        for name in ("JAVA_TOOL_OPTIONS", "LC_ALL", "LC_NUMERIC"):
            del os.environ[name]
    same = outcome.kind == "result" and outcome.value == good.value
    yield "a locale with decimal commas", None if same else f"{outcome}"


def memory(goods: dict[str, Path], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Let stages exceed their memory limit, then run them again without one."""
    for stage in stages(goods):
        if stage.name not in ("states", "trunk", "train", "predict"):
            continue
        place = folder / f"memory-{stage.name}"
        place.mkdir(parents=True)
        outcome = isolated(lambda s=stage, p=place: s.call(p), memory=0)
        problem = None
        if outcome.kind == "result":
            problem = "it needed no memory"
        elif outcome.kind == "hang" or (place / stage.output).exists():
            problem = f"{outcome.kind}, or something under the final name"
        elif outcome.kind == "defect" and "emory" not in outcome.text:
            problem = outcome.text[-800:]
        else:
            again = isolated(lambda s=stage, p=place: s.call(p))
            problem = None if again.kind == "result" else f"afterwards: {again}"
        yield f"{stage.name} over its memory limit", problem


def clock(goods: dict[str, Path], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Read files of the year 2100 and of 1970: results do not depend on the clock."""
    for name, when in (("set back", time.time() + 4e9), ("at its beginning", 1.0)):
        root = folder / "clock"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(goods["world"], root)
        good = isolated(lambda r=root: made.gap_of(r))
        for path in root.rglob("*"):
            os.utime(path, (when, when))
        outcome = isolated(lambda r=root: made.gap_of(r))
        same = outcome.kind == "result" and outcome.value == good.value
        yield f"a clock {name}", None if same else f"{outcome}"


def odd_paths(goods: dict[str, Path], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Run every stage in a folder with spaces, quotes, commands, unicode and a line break."""
    root = folder / ODD
    shutil.copytree(goods["world"], root / "world")
    copies = goods | {"world": root / "world"}
    for name in ("scores", "report", "tables"):
        copies[name] = Path(shutil.copytree(goods[name], root / name))
    for stage in stages(copies):
        outcome = isolated(lambda s=stage: s.call(root / "out"))
        problem = None if outcome.kind == "result" else f"{outcome}"
        if problem is None and stage.name != "train":
            usual = folder / "usual" / stage.name
            usual.mkdir(parents=True)
            plain = {one.name: one for one in stages(goods)}[stage.name]
            isolated(lambda s=plain, u=usual: s.call(u))
            problem = same(usual / stage.output, root / "out" / stage.output)
        yield f"{stage.name} in a folder with an odd name", problem


def run(
    goods: dict[str, Path], scratch: Path, *, shares: tuple[float, ...] = (0.0, 0.5, 0.95)
) -> list[tuple[str, str | None]]:
    """Return every fault that was tried, and what was wrong with how it ended."""
    found: list[tuple[str, str | None]] = []
    for stage in stages(goods):
        for share in shares:
            place = scratch / f"full-{stage.name}-{share}"
            found.append(
                (f"disk full at {share:.0%} of {stage.name}", full_disk(stage, place, share))
            )
        place = scratch / f"read-only-{stage.name}"
        found.append((f"{stage.name} into a read-only folder", read_only(stage, place)))
    for part in (between, java, memory, clock, odd_paths):
        found += part(goods, scratch / part.__name__)
    found += workflow.faults(scratch / "workflow")
    return found

"""Faults around the stages: no room, no rights, no memory, no Java, other bytes, odd clocks.

Each: a message that names the file and the way out, nothing under a final name that is not whole;
and once the cause is gone, the same call completes with the result of an undisturbed one.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts import write_json
from gapinit.data.dataset import prepare_dataset
from gapinit.metrics.captions import score_captions
from gapinit.metrics.java import find_java
from gapinit.predict import extract_features
from gapinit.report import make_report
from gapinit.states import extract_states

from ..small_backbone import SmallWorld
from . import targets as made
from .isolated import Outcome, isolated
from .mutate import flipped

ODD = 'it\'s "odd" $(touch pwned) `x`; ünï 日 \n line'
Problems = list[str]


@dataclass(frozen=True)
class Stage:
    """A stage that writes: its output below a folder, and the call that makes it there."""

    name: str
    output: str
    call: Callable[[Path], Any]


def stages(goods: dict[str, Path]) -> list[Stage]:
    """Return every stage that writes, reading from good folders and writing into another one."""
    world, scores, report = (SmallWorld(goods["world"]), goods["scores"], goods["report"])
    settings = world.root / "tiny.yaml"

    def backbone(folder: Path) -> None:
        from gapinit.artifacts import atomic_folder
        from gapinit.backbones import load_backbone

        model = load_backbone(world.backbone)
        with atomic_folder(folder / "backbone") as target:
            model.model.save_pretrained(target)
            model.processor.save_pretrained(target)

    return [
        Stage("data", "data", lambda f: prepare_dataset(settings, f / "data", progress=False)),
        Stage("backbone", "backbone", backbone),
        Stage(
            "states",
            "states.h5",
            lambda f: extract_states(
                world.backbone, world.manifest, f / "states.h5", pairs=20, seed=0
            ),
        ),
        Stage("gap", "gap.h5", lambda f: made.make_gap(world.states, f / "gap.h5")),
        Stage(
            "layers", "layers.json", lambda f: made.write_layers(world.gap, f / "layers.json", 1, 1)
        ),
        Stage("trunk", "trunk.h5", lambda f: made.make_trunk(world, f / "trunk.h5")),
        Stage("train", "run", lambda f: world.train(f / "run")),
        Stage(
            "features",
            "features.h5",
            lambda f: extract_features(world.backbone, world.manifest, f / "features.h5"),
        ),
        Stage("predict", "said.json", lambda f: made.make_predictions(world.root, f / "said.json")),
        Stage("score", "scores.json", lambda f: made.make_scores(scores, f / "scores.json")),
        Stage(
            "report",
            "report.html",
            lambda f: make_report(**made.build_paths(report), output=f / "report.html"),
        ),
    ]


@contextmanager
def disk(folder: Path, megabytes: int = 64) -> Iterator[Path | None]:
    """Yield a file system of its own, in memory; None where there is no right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def size_of(path: Path) -> int:
    """Return how many bytes a file or a folder takes."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in paths if one.is_file())


def refused(outcome: Outcome, output: Path, *words: str) -> str | None:
    """Return what is wrong with how a call ended that had to fail; None: nothing."""
    if outcome.kind != "error":
        return f"{outcome.kind} {outcome.text[-800:]}"
    lacking = [word for word in (output.name, *words) if word not in outcome.text]
    if lacking:
        return f"the message lacks {lacking}: {outcome.text}"
    left = [path for path in output.parent.glob("*") if path.name != "filler"]
    left = [path for path in left if not path.name.startswith(".") and path.name != output.name]
    if output.is_file() or (output / "manifest.json").exists():
        return "something stands under the final name"
    partial = [path for path in output.parent.rglob("*.partial")]
    return f"left behind: {partial}" if partial else None


def full_disk(stage: Stage, folder: Path, share: float) -> str | None:
    """Let a disk fill up after a share of what the stage writes; then free it."""
    usual = folder / "usual"
    usual.mkdir(parents=True)
    first = isolated(lambda: stage.call(usual))
    if first.kind != "result":
        return f"without a fault: {first}"
    need = size_of(usual / stage.output)
    with disk(folder / "disk") as place:
        if place is None:
            return _limited(stage, folder / "limited", need, share)
        free = shutil.disk_usage(place).free
        with (place / "filler").open("wb") as file:
            # Pages of 4 KiB; what the records of digests need comes on top.
            file.write(bytes(max(0, free - int(need * share) // 4096 * 4096)))
        outcome = isolated(lambda: stage.call(place))
        problem = refused(outcome, place / stage.output, "No space left", "run the same command")
        (place / "filler").unlink()
        return problem or _completes(stage, place, usual)


def _limited(stage: Stage, place: Path, need: int, share: float) -> str | None:
    """The same without the right to mount: no file may become larger than a limit."""
    place.mkdir(parents=True)

    def call() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(need * share) // 4, resource.RLIM_INFINITY))
        return stage.call(place)

    outcome = isolated(call)
    return None if outcome.kind in ("error", "result") else f"{outcome.kind}: {outcome.text[-800:]}"


def read_only(stage: Stage, folder: Path) -> str | None:
    """Write into a file system that is read-only, then make it writable."""
    usual = folder / "usual"
    usual.mkdir(parents=True)
    isolated(lambda: stage.call(usual))
    with disk(folder / "disk") as place:
        if place is None:
            return None  # a folder of the superuser's is always writable
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        outcome = isolated(lambda: stage.call(place))
        problem = refused(outcome, place / stage.output, "Read-only", "writable")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        return problem or _completes(stage, place, usual)


def _completes(stage: Stage, place: Path, usual: Path) -> str | None:
    """The same call, after the cause is gone."""
    outcome = isolated(lambda: stage.call(place))
    if outcome.kind != "result":
        return f"does not complete afterwards: {outcome}"
    return _same(usual / stage.output, place / stage.output)


PER_PROCESS = ("run.json", "process.json", "report.html", ".sha256")


def _same(one: Path, other: Path) -> str | None:
    pairs = (
        [(one, other)]
        if one.is_file()
        else [(path, other / path.relative_to(one)) for path in one.rglob("*") if path.is_file()]
    )
    for path, again in pairs:
        if path.name not in PER_PROCESS and path.read_bytes() != again.read_bytes():
            return f"{path.name} is another one afterwards"
    return None


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
        ("gap.h5", lambda r, o: made.make_gap(r / "states.h5", o), made.gap_read),
        ("trunk_naive.h5", lambda r, o: made.make_trunk(SmallWorld(r), o), made.trunk_read),
        ("features.h5", made_features, made.predictions),
        ("layers.json", lambda r, o: write_json(o, made.LAYERS), made.trunk_made),
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


def java(goods: dict[str, Path], folder: Path) -> Iterator[tuple[str, str | None]]:
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
        return score_captions(*names, output, ["cider", "meteor"], java=program)

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
    for name in ("scores", "report"):
        copies[name] = Path(shutil.copytree(goods[name], root / name))
    for stage in stages(copies):
        outcome = isolated(lambda s=stage: s.call(root / "out"))
        problem = None if outcome.kind == "result" else f"{outcome}"
        if problem is None and stage.name != "train":
            usual = folder / "usual" / stage.name
            usual.mkdir(parents=True)
            plain = {one.name: one for one in stages(goods)}[stage.name]
            isolated(lambda s=plain, u=usual: s.call(u))
            problem = _same(usual / stage.output, root / "out" / stage.output)
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
    return found

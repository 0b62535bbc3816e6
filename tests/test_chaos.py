"""A sample of `make chaos`: bad input, faults around a few stages, and one killed stage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .chaos import disks, faults, inputs
from .chaos.goods import make_goods
from .chaos.isolated import isolated
from .chaos.stages import stages
from .small_backbone import small_world


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.getbasetemp()
    return make_goods(tmp_path_factory.mktemp("goods"), small_world(base))


def test_the_corpus_is_large_and_of_every_kind(goods: dict[str, Path]) -> None:
    cases = inputs.cases(goods)
    assert len(cases) > 1000
    assert {case.target.kind for case in cases} == {
        "json", "lines", "yaml", "hdf5", "safetensors", "image", "text",
    }  # fmt: skip
    assert len({str(case) for case in inputs.cases(goods)} ^ {str(case) for case in cases}) == 0


@pytest.mark.slow
def test_bad_input_is_told_or_right(goods: dict[str, Path], tmp_path: Path) -> None:
    tried, wrong = inputs.run(goods, tmp_path, limit=40)
    assert tried == 40 and not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gap", "layers", "score"])
def test_a_full_disk_and_a_read_only_one(goods: dict[str, Path], tmp_path: Path, name: str) -> None:
    (stage,) = [stage for stage in stages(goods) if stage.name == name]
    assert disks.full_disk(stage, tmp_path / "full", 0.5) is None
    assert disks.read_only(stage, tmp_path / "read-only") is None


@pytest.mark.slow
def test_java_that_is_missing_or_dies(goods: dict[str, Path], tmp_path: Path) -> None:
    ended = faults.java(goods, tmp_path / "java", ["cider"])
    assert [one for one in ended if one[1] is not None] == []


def test_what_hangs_and_what_dies_is_seen() -> None:
    assert isolated(lambda: time.sleep(60), seconds=0.3).kind == "hang"
    assert isolated(lambda: os.kill(os.getpid(), signal.SIGSEGV)).kind == "death"
    assert isolated(lambda: 1 / 0).kind == "defect"
    assert isolated(lambda: 7).value == 7


KILLED = """
import sys
from pathlib import Path
from tests.chaos.stages import stages
goods = {path.name: path for path in Path(sys.argv[1]).iterdir()}
stage = {one.name: one for one in stages(goods)}[sys.argv[3]]
print("begins", flush=True)
stage.call(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_stage_ends_in_the_same_bytes(goods: dict[str, Path], tmp_path: Path) -> None:
    root, name, place, usual = (
        Path(__file__).resolve().parents[1], "trunk", tmp_path / "killed", tmp_path / "usual",
    )  # fmt: skip
    command = [
        sys.executable, "-c", KILLED, str(next(iter(goods.values())).parent), str(place), name,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"begins\n"
    time.sleep(random.Random(5).uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=root, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (stage,) = [stage for stage in stages(goods) if stage.name == name]
    usual.mkdir()
    assert isolated(lambda: stage.call(usual)).kind == "result"
    assert (place / stage.output).read_bytes() == (usual / stage.output).read_bytes()

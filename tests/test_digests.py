"""A changed byte in anything that gapinit wrote is refused by the stage that reads it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gapinit.artifacts import digests
from gapinit.artifacts.artifacts import (
    atomic_file,
    atomic_folder,
    create_hdf5,
    open_hdf5,
    read_json,
    write_json,
)
from gapinit.cli import app
from gapinit.errors import GapinitError
from gapinit.workflow.verify import verify_results


def flip(path: Path, place: int = -1) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def hdf5(path: Path) -> None:
    with create_hdf5(path, "states", {"a": 1}) as file:
        file["vision"] = [[1.5, 2.5], [3.5, 4.5]]


def test_every_byte_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "states.h5"
    hdf5(path)
    good = path.read_bytes()
    assert digests.sha256(path) == hashlib.sha256(good).hexdigest()
    draw = random.Random(0)
    for place in [*draw.sample(range(len(good)), 20), len(good) - 1]:
        flip(path, place)
        with pytest.raises(GapinitError, match=r"states\.h5: altered since"):
            digests.require_unaltered(path)
        path.write_bytes(good)
    path.write_bytes(good[:-1])
    with pytest.raises(GapinitError, match=r"states\.h5: altered"), open_hdf5(path, "states"):
        pass


def test_json_is_checked_where_it_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "layers.json", tmp_path / "other.json"
    write_json(path, {"naive": [3, 4]})
    write_json(other, {"naive": [2, 4]})
    path.write_bytes(other.read_bytes())
    with pytest.raises(GapinitError, match=r"layers.json: altered .* delete \.layers.json.sha"):
        read_json(path)
    digests.digest_file(path).unlink()
    assert read_json(path) == {"naive": [2, 4]}


def test_an_inner_folder_of_another_run_is_altered(tmp_path: Path) -> None:
    for name in "ab":
        with atomic_folder(tmp_path / name) as run, atomic_folder(run / "adapter") as adapter:
            (adapter / "weights").write_text(name)
    digests.require_folder_unaltered(tmp_path / "a/adapter")
    os.rename(tmp_path / "a/adapter", tmp_path / "kept")
    os.rename(tmp_path / "b/adapter", tmp_path / "a/adapter")
    for path in (tmp_path / "a", tmp_path / "a/adapter"):
        with pytest.raises(GapinitError, match=r"a/adapter/weights: altered"):
            digests.require_folder_unaltered(path)
    with pytest.raises(GapinitError, match=r"a/adapter/weights: altered"):
        digests.require_unaltered(tmp_path / "a/adapter/weights")


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "backbone") as folder:
        (folder / "model.safetensors").write_text("x")
    (tmp_path / "backbone/model.safetensors").unlink()
    with pytest.raises(GapinitError, match="missing, but recorded in"):
        digests.require_folder_unaltered(tmp_path / "backbone")


def test_odd_names_are_written_as_sha256sum_does(tmp_path: Path) -> None:
    names = ["a b", "quote'\"", "new\nline", "back\\slash", "ünï"]
    with atomic_folder(tmp_path / "folder") as folder:
        for name in names:
            (folder / name).write_text(name)
    check = ["sha256sum", "--check", "--strict", ".sha256"]
    subprocess.run(check, cwd=tmp_path / "folder", check=True, capture_output=True)
    digests.require_folder_unaltered(tmp_path / "folder")
    flip(tmp_path / "folder/new\nline")
    with pytest.raises(GapinitError, match="altered"):
        digests.require_folder_unaltered(tmp_path / "folder")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a results folder as a small configuration leaves it, with what it shares."""
    results = tmp_path / "results/small"
    write_json(
        results / "configuration.json",
        {"backbone": "mini", "backbones": {}, "datasets": {"in-domain": "scenes"}},
    )
    hdf5(results / "2_states/mini/scenes.h5")
    hdf5(results / "5_evaluate/features/mini/scenes.h5")
    write_json(results / "5_evaluate/runs/x/scenes.scores.json", {"CIDEr": 1.0})
    with atomic_folder(results / "4_train/runs/x") as run:
        with atomic_folder(run / "adapter") as adapter:
            (adapter / "adapter_model.safetensors").write_bytes(bytes(50))
        write_json(run / "run.json", {"factors": {}})
        (run / "steps.csv").write_text("step\n1\n")
    for name in ("table.csv", "figure.pdf"):
        with atomic_file(results / name) as temporary:
            temporary.write_text("1,2\n")
    with atomic_folder(tmp_path / "results/1_backbones/mini") as folder:
        (folder / "model.safetensors").write_bytes(bytes(50))
    images = tmp_path / "elsewhere"
    images.mkdir()
    (images / "1.jpg").write_bytes(bytes(20))
    data = tmp_path / "results/1_data/scenes"
    write_json(data / "manifest.json", {"root": str(images)})
    digests.write_listing(data / "images.sha256", {"1.jpg": digests.sha256(images / "1.jpg")})
    (results / "logs").mkdir()
    (results / "logs/train.log").write_text("said")
    return results


def everything(results: Path) -> list[Path]:
    """Return every file that verification answers for, records included."""
    roots = [results, results.parent / "1_data", results.parent / "1_backbones"]
    paths = [path for root in roots for path in root.rglob("*") if path.is_file()]
    paths.append(results.parent.parent / "elsewhere/1.jpg")
    return [path for path in paths if "logs" not in path.parts]


def test_verify_finds_one_flipped_bit_in_any_file(tree: Path) -> None:
    verdict = verify_results(tree)
    assert verdict.clean and verdict.intact == 13
    for path in everything(tree):
        good = path.read_bytes()
        flip(path, len(good) // 2)
        assert not verify_results(tree).clean, path
        path.write_bytes(good)
    assert verify_results(tree).clean


def test_a_files_own_checksum_replaces_that_of_its_folder(tree: Path) -> None:
    folder = tree / "adapter"
    folder.mkdir()
    (folder / "a.csv").write_text("new")
    write_json(folder / "b.json", {})
    digests.write_listing(folder / digests.LISTING, {"a.csv": 64 * "0"})
    digests.write_listing(
        digests.digest_file(folder / "a.csv"), {"a.csv": digests.sha256(folder / "a.csv")}
    )
    assert verify_results(tree).clean


def test_verify_wants_those_backbones_that_were_used(tree: Path) -> None:
    """A configuration may name more than its tables use, as that of `make demo` does."""
    path = tree / "configuration.json"
    write_json(path, read_json(path) | {"backbones": {"gemma3": "mini-gemma3"}})
    assert verify_results(tree).clean
    write_json(tree / "5_evaluate/features/mini-gemma3/scenes.h5", {})
    assert list(verify_results(tree).missing) == [tree.parent / "1_backbones/mini-gemma3"]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda p: flip(p / "table.csv"), "altered {}/table.csv: its SHA-256 is not the one in"),
        (lambda p: (p / "table.csv").unlink(), "missing {}/table.csv: "),
        (lambda p: (p / "mine.txt").write_text("x"), "unknown {}/mine.txt: no stage recorded it"),
        (lambda p: (p / "table.csv").write_text(""), "altered {}/table.csv"),
        (lambda p: digests.digest_file(p / "table.csv").unlink(), "unknown {}/table.csv"),
        (
            lambda p: (p.parent / "1_backbones/mini/model.safetensors").unlink(),
            "missing {}/model.safetensors",
        ),
    ],
)
def test_verify_says_one_line_a_file_and_exits_with_1(
    tree: Path, damage: Callable[[Path], object], line: str
) -> None:
    damage(tree)
    place = tree.parent / "1_backbones/mini" if "model" in line else tree
    result = CliRunner().invoke(app, ["verify", str(tree)])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 2 and lines[0].startswith(line.format(place)), result.output


def test_verify_in_json_and_on_a_clean_folder(tree: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tree), "--json"])
    assert result.exit_code == 0 and json.loads(result.output)["clean"] is True
    (tree.parent / "1_data/scenes/manifest.json").unlink()
    result = CliRunner().invoke(app, ["verify", str(tree), "--json"])
    found = json.loads(result.output)
    assert result.exit_code == 1
    assert found["missing"][0]["file"].endswith("1_data/scenes/manifest.json")


def test_verify_of_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match="no such folder"):
        verify_results(tmp_path / "nothing")

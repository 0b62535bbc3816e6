"""Extractions in shards: together they are the whole, and a killed job leaves no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from gapinit.artifacts.shards import Shard, shard_set
from gapinit.backbones import load_backbone
from gapinit.errors import GapinitError
from gapinit.evaluate.image_features import read_features
from gapinit.evaluate.predict import Questions, extract_features, predict, predict_several
from gapinit.evaluate.predictions import gather_predictions
from gapinit.figures import figure1c
from gapinit.gap.gap_file import estimate_gap_file, read_gap
from gapinit.states.states import extract_states
from gapinit.train.trunk.modes import TrunkSize
from gapinit.train.trunk.write import extract_trunk, read_trunk

from .plain_json import names
from .small_backbone import TOKENS, SmallWorld, small_world

MODES = ("layer", "vision", "off")
EXTRACTIONS = ("states", "features", *MODES)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def extract(world: SmallWorld, name: str, output: Path, **options: Any) -> None:
    """Extract from the small world in small blocks: states, features, or a trunk in some mode."""
    if name == "states":
        extract_states(
            world.backbone, world.manifest, output, pairs=20, seed=0, batch_size=2, **options
        )
    elif name == "features":
        extract_features(world.backbone, world.manifest, output, batch_size=2, **options)
    else:
        extract_trunk(
            world.backbone, world.manifest, world.layers, "naive", output,
            max_tokens=TOKENS, images_per_batch=2, mode=name, **options,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture(scope="module")
def wholes(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    paths = {name: folder / f"{name}.h5" for name in EXTRACTIONS}
    for name, path in paths.items():
        extract(world, name, path)
    return paths


@pytest.fixture(scope="module")
def parts(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Return three shards of every extraction."""
    folder = tmp_path_factory.mktemp("shards")
    paths = {name: [folder / f"{name}.{i}-of-3.h5" for i in (1, 2, 3)] for name in EXTRACTIONS}
    for name, group in paths.items():
        for index, path in enumerate(group, 1):
            extract(world, name, path, shard=f"{index}/3")
    return paths


AXES = {"vision": 1, "text": 1}


@pytest.mark.parametrize("name", ["states", "features"])
def test_the_rows_of_shards_are_those_of_the_whole(
    wholes: dict[str, Path], parts: dict[str, list[Path]], name: str
) -> None:
    with h5py.File(wholes[name]) as whole:
        for data in whole:
            joined = []
            for path in parts[name]:
                with h5py.File(path) as file:
                    joined.append(file[data][()])
            if whole[data].shape == ():  # of the whole: each shard has it
                assert set(joined) == {whole[data][()]}
                continue
            axis = AXES[data] if name == "states" and data in AXES else 0
            np.testing.assert_array_equal(np.concatenate(joined, axis), whole[data][()])


@pytest.mark.parametrize("mode", MODES)
def test_a_trunk_of_shards_is_the_whole_trunk(
    world: SmallWorld, wholes: dict[str, Path], parts: dict[str, list[Path]], mode: str
) -> None:
    whole = read_trunk(wholes[mode]).prepare(load_backbone(world.backbone))
    found = read_trunk(parts[mode][::-1]).prepare(load_backbone(world.backbone))
    assert len(found) == len(whole) and found.inputs == whole.inputs
    for chosen in ([0, 119, 41, 60], list(range(120))):
        batch, expected = found.batch(chosen), whole.batch(chosen)
        assert set(batch) == set(expected)
        for name, value in expected.items():
            if name == "pixels":
                torch.testing.assert_close(batch[name]["pixel_values"], value["pixel_values"])
            else:
                torch.testing.assert_close(batch[name], value, rtol=0, atol=0)


def test_more_shards_than_blocks_leave_some_empty(
    world: SmallWorld, wholes: dict[str, Path], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{index}.h5" for index in range(1, 7)]
    for index, path in enumerate(paths, 1):
        extract(world, "features", path, shard=f"{index}/6")  # there are 4 blocks
    found, whole = read_features(paths), read_features(wholes["features"])
    assert list(found.row_of) == list(whole.row_of)
    asked = list(whole.row_of)[::-1]
    torch.testing.assert_close(found.take(asked).tokens, whole.take(asked).tokens, rtol=0, atol=0)


class Killed(BaseException):
    """Stands for a kill: no handler of gapinit's expects it."""


@pytest.mark.parametrize("name", ["states", "features", "layer"])
def test_a_killed_extraction_leaves_nothing_and_ends_in_the_same_bytes(
    world: SmallWorld,
    wholes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    write, written = h5py.Dataset.__setitem__, 0

    def killed(data: h5py.Dataset, rows: Any, values: Any) -> None:
        nonlocal written
        written += 1
        write(data, rows, values)
        if written == 5:
            raise Killed

    monkeypatch.setattr(h5py.Dataset, "__setitem__", killed)
    with pytest.raises(Killed):
        extract(world, name, tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    extract(world, name, tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == wholes[name].read_bytes()
    assert names(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("mode", MODES)
def test_the_doctor_predicts_the_bytes_of_a_trunk(wholes: dict[str, Path], mode: str) -> None:
    with h5py.File(wholes[mode]) as file:
        held = sum(it.nbytes for it in file.values() if it.dtype.kind in "iuf")
        ids, rows = len(file["input_ids"]), file["image_row"].shape[0]
        prefix = int(file["prefix_offset"][-1])
    size = TrunkSize(24, rows, ids, prefix, 0, width=32, value_bytes=4, grid_width=0)
    assert size.bytes(mode) == held  # type: ignore[arg-type]


def test_a_gap_of_shards_is_the_whole_gap(
    wholes: dict[str, Path], parts: dict[str, list[Path]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"size": 12, "heldout": 8, "neighbours": 3, "smoothing": "spot"}
    options |= {"alpha_semantic": 1.0, "alpha_geometric": 1.0}
    paths = parts["states"]
    estimate_gap_file([wholes["states"]], tmp_path / "one.h5", **options)
    estimate_gap_file([paths[1], paths[0], paths[2]], tmp_path / "three.h5", **options)
    one, three = read_gap(tmp_path / "one.h5"), read_gap(tmp_path / "three.h5")
    np.testing.assert_array_equal(one.gap, three.gap)
    np.testing.assert_array_equal(one.score, three.score)
    assert one.fingerprint == three.fingerprint
    figure1c.draw(paths, tmp_path / "three.h5", tmp_path / "figure")
    assert (tmp_path / "figure.csv").is_file()


def test_predictions_from_shards_are_the_wholes(
    world: SmallWorld, wholes: dict[str, Path], parts: dict[str, list[Path]], tmp_path: Path
) -> None:
    said = []
    for features in (wholes["features"], parts["features"]):
        output = tmp_path / f"{len(said)}.json"
        predict(
            world.backbone, world.manifest, features, None, output,
            num_beams=1, max_new_tokens=6, batch_size=3,
        )  # fmt: skip
        said.append(json.loads(output.read_text()))
    assert said[0] == said[1] and len(said[0]) == 7


def test_predictions_in_parts_are_the_wholes(
    world: SmallWorld, wholes: dict[str, Path], tmp_path: Path
) -> None:
    asked = [Questions(world.manifest, wholes["features"], 6)]
    parts = [tmp_path / f"{index}.json" for index in (1, 2, 3)]
    for place, path in enumerate([tmp_path / "whole.json", *parts]):
        predict_several(
            world.backbone, asked, [None], [[path]], num_beams=1, batch_size=3,
            shard=f"{place}/3" if place else None,
        )  # fmt: skip
    gather_predictions(world.manifest, parts, tmp_path / "gathered.json")
    assert (tmp_path / "gathered.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(GapinitError, match="each of 3 parts once.*found 1/3, 3/3, with 4"):
        gather_predictions(world.manifest, [parts[0], parts[2]], tmp_path / "none.json")
    with pytest.raises(GapinitError, match="whole.json: input should be a valid dictionary"):
        gather_predictions(world.manifest, [tmp_path / "whole.json"], tmp_path / "none.json")
    foreign, content = tmp_path / "foreign.json", json.loads(parts[0].read_text())
    foreign.write_text(json.dumps(content | {"answers": {"x": "a"}}))
    with pytest.raises(GapinitError, match="foreign.json: key 'answers.x"):
        gather_predictions(world.manifest, [foreign, *parts[1:]], tmp_path / "none.json")
    predict_several(
        world.backbone, asked, [None], [[parts[2]]], num_beams=2, batch_size=3, shard="3/3"
    )
    with pytest.raises(GapinitError, match="not parts of the same predictions"):
        gather_predictions(world.manifest, parts, tmp_path / "none.json")
    with pytest.raises(GapinitError, match="not answers to"):
        gather_predictions(world.layers, parts, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_set_of_shards_has_to_be_complete(
    world: SmallWorld, wholes: dict[str, Path], parts: dict[str, list[Path]], tmp_path: Path
) -> None:
    paths = parts["features"]
    with pytest.raises(GapinitError, match=r"missing: 2/3"):
        shard_set([paths[0], paths[2]], "features")
    with pytest.raises(GapinitError, match="Name each shard once"):
        shard_set([paths[0], paths[1], paths[1]], "features")
    other = tmp_path / "other.h5"
    extract_features(world.backbone, world.manifest, other, batch_size=3, shard="3/3")
    with pytest.raises(GapinitError, match="are missing: "):
        shard_set([*paths[:2], other], "features")
    with pytest.raises(GapinitError, match="expected the file or all shards of one artifact"):
        shard_set([*paths, wholes["features"]], "features")


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/0"])
def test_a_shard_is_named_i_of_n(text: str) -> None:
    with pytest.raises(GapinitError, match="--shard: expected I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shards_divide_the_blocks(count: int) -> None:
    spans = [Shard.parse(f"{index}/{count}").of(103, 4) for index in range(1, count + 1)]
    assert [row for span in spans for row in range(103)[span]] == list(range(103))
    assert all(span.start % 4 == 0 or span.start == 103 for span in spans)
    blocks = [-(-(span.stop - span.start) // 4) for span in spans]
    assert max(blocks) - min(blocks) <= 1


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from gapinit.artifacts.artifacts import create_hdf5
with create_hdf5(Path(sys.argv[1]), "states", {}) as file:
    rows = file.create_dataset("vision", (4, 64 * 256, 1024), "f4")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, 64 * 256, 256):
        rows[:, start : start + 256] = np.ones((4, 256, 1024), "f4")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_what_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "a.h5").stat().st_size > 256 << 20
    assert int(done.stdout) < 32 << 10, "kB, for 256 MiB in blocks of 4 MiB"

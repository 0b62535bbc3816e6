"""Extraction that is killed goes on where it was; shards together are the whole; disks are full."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch

import gapinit.artifacts.partial as partial
from gapinit.artifacts.partial import Filled, Layout, blocks_of, resumable_hdf5
from gapinit.artifacts.shards import Shard, shard_set
from gapinit.data.manifest import read_manifest, write_manifest
from gapinit.errors import GapinitError
from gapinit.evaluate.image_features import read_features
from gapinit.evaluate.predict import Questions, extract_features, predict, predict_several
from gapinit.evaluate.predictions import gather_predictions
from gapinit.figures import figure1c
from gapinit.gap.gap_file import estimate_gap_file, read_gap
from gapinit.states.states import extract_states
from gapinit.train.train import train_run
from gapinit.train.trunk.modes import TrunkSize
from gapinit.train.trunk.write import extract_trunk, read_trunk

from .plain_json import names
from .small_backbone import TOKENS, SmallWorld, small_world

# Data that is written at random moments, by processes that are killed: a block, then some time.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from gapinit.partial import Filled, Layout, resumable_hdf5
f4 = np.dtype("f4")
layout = Layout("states", {"of": "test"}, {"name": [f"n{i}" for i in range(60)]},
                {"rows": Filled((60, 7), f4), "layers": Filled((3, 60, 5), f4, 1)})
with resumable_hdf5(Path(sys.argv[1]), layout) as file:
    print("at", file.done, flush=True)
    for block in range(file.done, 30):
        draw = np.random.default_rng(block)
        file.write("rows", draw.random((2, 7), dtype="f4"))
        file.write("layers", draw.random((3, 2, 5), dtype="f4"))
        file.end_block()
        time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


class Stage(NamedTuple):
    """An extraction of the small world, with small blocks."""

    kind: str
    blocks: int
    run: Callable[..., None]


def stages(world: SmallWorld) -> list[Stage]:
    def states(output: Path, **options: Any) -> None:
        extract_states(
            world.backbone, world.manifest, output, pairs=20, seed=0, batch_size=2, **options
        )

    def features(output: Path, **options: Any) -> None:
        extract_features(world.backbone, world.manifest, output, batch_size=2, **options)

    def trunk(mode: str) -> Callable[..., None]:
        def run(output: Path, **options: Any) -> None:
            extract_trunk(
                world.backbone,
                world.manifest,
                world.layers,
                "naive",
                output,
                max_tokens=TOKENS,
                images_per_batch=2,
                mode=mode,  # type: ignore[arg-type]
                **options,
            )

        return run

    return [
        Stage("states", 10, states),
        Stage("features", 4, features),
        Stage("trunk", 12, trunk("layer")),
        Stage("trunk", 12, trunk("vision")),
        Stage("trunk", 0, trunk("off")),
    ]


class Killed(BaseException):
    """Stands for a kill: nothing of the program runs afterwards."""


@pytest.mark.parametrize("number", range(4))
def test_a_killed_extraction_ends_in_the_same_bytes(
    world: SmallWorld, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages(world)[number]
    stage.run(tmp_path / "whole.h5")
    monkeypatch.setattr(partial, "COMMIT_BLOCKS", 2)
    computed = 0
    end = partial.Partial.end_block
    dies_at = 2

    def end_block(file: partial.Partial) -> None:
        nonlocal computed
        computed += 1
        end(file)
        if file.done == dies_at:
            # As after SIGKILL: nothing more is written, neither data nor journal.
            monkeypatch.setattr(partial.Partial, "commit", lambda _: None)
            raise Killed

    commit = partial.Partial.commit
    monkeypatch.setattr(partial.Partial, "end_block", end_block)
    for dies_at in (3, 3 if stage.blocks < 6 else 6, 99):
        monkeypatch.setattr(partial.Partial, "commit", commit)
        if dies_at == 99:
            stage.run(tmp_path / "resumed.h5")
        else:
            with pytest.raises(Killed):
                stage.run(tmp_path / "resumed.h5")
            assert not (tmp_path / "resumed.h5").exists()
    assert computed <= stage.blocks + 2, "at most the blocks that were not flushed, again"
    assert (tmp_path / "resumed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert names(tmp_path) == ["resumed.h5", "whole.h5"]


def test_processes_killed_at_random_moments_leave_the_same_bytes(tmp_path: Path) -> None:
    def start(output: Path, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(output), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole.h5", 0.0)
    assert whole.wait() == 0
    draw, begun, output = random.Random(5), [], tmp_path / "killed.h5"
    for _ in range(8):
        process = start(output, 0.02)
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if line:
            begun.append(int(line[1]))
        time.sleep(draw.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            break
    assert start(output, 0.0).wait() == 0
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert begun == sorted(begun) and begun[-1] >= 8, "what was flushed was not computed again"


F4 = np.dtype("f4")
LAYOUT = Layout("states", {"of": 1}, {"name": ["a", "b"]}, {"rows": Filled((12, 3), F4)})


def fill(path: Path, layout: Layout = LAYOUT, stop: int = 12, value: float = 1.0) -> int:
    """Write a row a block; return where it began."""
    with resumable_hdf5(path, layout) as file:
        begun = file.done
        for block in range(begun, stop):
            file.write("rows", np.full((1, 3), value + block, F4))
            file.end_block()
        if stop < 12:
            raise KeyboardInterrupt
    return begun


def interrupted(path: Path) -> Path:
    """Leave a file of which 9 blocks are there; return its partial."""
    with pytest.raises(KeyboardInterrupt):
        fill(path, stop=9)
    return path.with_name(f"{path.name}.partial")


@pytest.mark.parametrize(
    "layout",
    [
        replace(LAYOUT, kind="trunk"),
        replace(LAYOUT, inputs={"of": 2}),
        replace(LAYOUT, known={"name": ["a", "c"]}),
        replace(LAYOUT, attributes={"mode": "x"}),
        replace(LAYOUT, shard=Shard(1, 2, 0, 12, 24)),
        replace(LAYOUT, filled={"rows": Filled((12, 3), np.dtype("i4"))}),
    ],
)
def test_another_layouts_blocks_are_not_taken_over(tmp_path: Path, layout: Layout) -> None:
    interrupted(tmp_path / "a.h5")
    if layout.filled["rows"].dtype == F4:
        assert fill(tmp_path / "a.h5", layout) == 0
    else:
        with resumable_hdf5(tmp_path / "b.h5", layout) as file:
            assert file.done == 0
            file.write("rows", np.zeros((12, 3), "i4"))
            file.end_block()


def test_damage_is_found_and_computed_again(tmp_path: Path) -> None:
    fill(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    with h5py.File(tmp_path / "whole.h5") as file:
        offset = file["rows"].id.get_offset()
    path = tmp_path / "a.h5"

    def after(damage: Callable[[Path, Path], None]) -> int:
        found = interrupted(path)
        damage(found, found.with_name(f"{found.name}.journal"))
        begun = fill(path)
        assert path.read_bytes() == whole
        path.unlink()
        return begun

    def flip(place: int) -> Callable[[Path, Path], None]:
        def damage(found: Path, _: Path) -> None:
            content = bytearray(found.read_bytes())
            content[place] ^= 1
            found.write_bytes(content)

        return damage

    assert after(lambda *_: None) == 9
    assert after(flip(offset + 5 * 12 + 2)) == 5, "the sixth block is damaged"
    assert after(flip(offset)) == 0
    assert after(flip(60)) == 0, "a byte of HDF5's own"
    assert after(lambda found, _: os.truncate(found, offset + 40)) == 0
    assert after(lambda found, _: found.unlink()) == 0
    assert after(lambda _, journal: journal.unlink()) == 0
    assert after(lambda _, journal: os.truncate(journal, journal.stat().st_size - 3)) == 8
    assert after(lambda _, journal: journal.write_text("no journal\n")) == 0
    assert after(lambda found, _: found.write_bytes(b"x" * found.stat().st_size)) == 0


def test_two_writers_never_share_a_file(tmp_path: Path) -> None:
    with resumable_hdf5(tmp_path / "a.h5", LAYOUT) as file:
        with pytest.raises(GapinitError, match=r"a\.h5: another process is writing it"):
            fill(tmp_path / "a.h5")
        file.write("rows", np.zeros((12, 3), F4))
        file.end_block()
    assert names(tmp_path) == ["a.h5"]


def test_an_error_of_the_inputs_drops_what_was_made_of_them(tmp_path: Path) -> None:
    with (
        pytest.raises(GapinitError, match="damaged image"),
        resumable_hdf5(tmp_path / "a.h5", LAYOUT) as file,
    ):
        file.write("rows", np.zeros((9, 3), F4))
        file.end_block()
        raise GapinitError("damaged image")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 100, 100))
    for stage in stages(world)[:3]:
        with pytest.raises(GapinitError) as error:
            stage.run(tmp_path / "full.h5")
        text = str(error.value)
        assert (
            "full.h5: No space left for it: it needs" in text
            and "has 100 (" in text
            and "free" in text
        )
        if stage.kind == "trunk":
            assert "bfloat16" in text and "another folder" in text and "--mode vision" in text
        assert not list(tmp_path.iterdir())


def test_the_bytes_that_are_predicted_are_those_that_are_written(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(partial, "require_room", lambda _, needed, __: told.append(needed))
    for number, stage in enumerate(stages(world)):
        path = tmp_path / f"{number}.h5"
        stage.run(path)
        with h5py.File(path) as file:
            held = sum(it.nbytes for it in file.values() if it.dtype.kind in "iuf")
            assert told[number] == held
            if stage.kind == "trunk":
                ids, rows = len(file["input_ids"]), file["image_row"].shape[0]
                prefix = int(file["prefix_offset"][-1])
                size = TrunkSize(24, rows, ids, prefix, 0, width=32, value_bytes=4, grid_width=0)
                assert size.bytes(file.attrs["mode"]) == held, "the doctor's formula"


def test_a_disk_that_fills_up_keeps_what_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.pwrite, 10

    def full(descriptor: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GapinitError, match=r"cannot be written \(No space left on device\).*again"):
        fill(tmp_path / "a.h5")
    monkeypatch.setattr(os, "pwrite", write)
    assert fill(tmp_path / "a.h5") == 8


def shards(stage: Stage, folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{stage.kind}.{index}-of-{count}.h5" for index in range(1, count + 1)]
    for index, path in enumerate(paths, 1):
        stage.run(path, shard=f"{index}/{count}")
    return paths


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("count", [3, 16])
def test_a_trunk_of_shards_is_the_whole_trunk(
    world: SmallWorld, tmp_path: Path, number: int, count: int
) -> None:
    stage = stages(world)[number]
    paths = shards(stage, tmp_path, count)  # of 16 some are empty: there are 12 blocks
    stage.run(tmp_path / "whole.h5")
    from gapinit.backbones import load_backbone

    backbone = load_backbone(world.backbone)
    whole = read_trunk(tmp_path / "whole.h5").prepare(load_backbone(world.backbone))
    found = read_trunk(paths[::-1]).prepare(backbone)
    assert len(found) == len(whole) and found.inputs == whole.inputs
    for chosen in ([0, 119, 41, 60], list(range(120))):
        batch, expected = found.batch(chosen), whole.batch(chosen)
        assert set(batch) == set(expected)
        for name, value in expected.items():
            if name == "pixels":
                torch.testing.assert_close(batch[name]["pixel_values"], value["pixel_values"])
            else:
                torch.testing.assert_close(batch[name], value, rtol=0, atol=0)


def test_training_reads_shards(world: SmallWorld, tmp_path: Path) -> None:
    paths = shards(stages(world)[2], tmp_path, 3)
    run = {"method": "lora-kaiming", "strategy": "naive"}
    whole = world.train(tmp_path / "whole", **run)
    from gapinit.config.configuration import Lora, Training
    from gapinit.config.runs import Run

    train_run(
        Run("tiny", "tiny", "lora-kaiming", rank=1, layers="naive", epochs=1, seed=42),
        world.backbone,
        paths,
        world.layers,
        world.gap,
        tmp_path / "shards",
        recipe=Training(batch_size=24),
        lora=Lora(),
    )
    for name in ("steps.csv",):
        ours, theirs = ((folder / name).read_text() for folder in (tmp_path / "shards", whole))
        table = [np.genfromtxt(text.splitlines()[1:], delimiter=",") for text in (ours, theirs)]
        np.testing.assert_allclose(table[0], table[1], rtol=1e-4)


def test_a_gap_of_shards_is_the_whole_gap(world: SmallWorld, tmp_path: Path) -> None:
    stage = stages(world)[0]
    paths = shards(stage, tmp_path, 3)
    stage.run(tmp_path / "whole.h5")
    options: dict[str, Any] = {"size": 12, "heldout": 8, "neighbours": 3, "smoothing": "spot"}
    options |= {"alpha_semantic": 1.0, "alpha_geometric": 1.0}
    estimate_gap_file([tmp_path / "whole.h5"], tmp_path / "one.h5", **options)
    estimate_gap_file([paths[1], paths[0], paths[2]], tmp_path / "three.h5", **options)
    one, three = read_gap(tmp_path / "one.h5"), read_gap(tmp_path / "three.h5")
    np.testing.assert_array_equal(one.gap, three.gap)
    np.testing.assert_array_equal(one.score, three.score)
    figure1c.draw(paths, tmp_path / "three.h5", tmp_path / "figure")
    assert (tmp_path / "figure.csv").is_file()


def test_predictions_from_shards_are_the_wholes(world: SmallWorld, tmp_path: Path) -> None:
    stage = stages(world)[1]
    paths = shards(stage, tmp_path, 2)
    stage.run(tmp_path / "whole.h5")
    options: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 6, "batch_size": 3}
    for features, name in ((tmp_path / "whole.h5", "whole"), (paths, "shards")):
        output = tmp_path / f"{name}.json"
        predict(world.backbone, world.manifest, features, None, output, **options)
    said = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "shards")]
    assert said[0] == said[1] and len(said[0]) == 7
    assert len(read_features(paths).counts) == 7


def test_predictions_in_parts_are_the_wholes(world: SmallWorld, tmp_path: Path) -> None:
    stages(world)[1].run(tmp_path / "features.h5")
    asked = [Questions(world.manifest, tmp_path / "features.h5", 6)]
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
    with pytest.raises(GapinitError, match="not a whole part of predictions, expected what"):
        gather_predictions(world.manifest, [tmp_path / "whole.json"], tmp_path / "none.json")
    foreign, content = tmp_path / "foreign.json", json.loads(parts[0].read_text())
    for change in (
        {"asked": None}, {"asked": {}}, {"shard": [1]}, {"shard": 1}, {"shard": ["1", 3]},
        {"answers": []}, {"answers": {"x": "a"}}, {"answers": {"0": 1}},
    ):  # fmt: skip
        foreign.write_text(json.dumps(content | change))
        with pytest.raises(GapinitError, match="foreign.json: not a whole part of predictions"):
            gather_predictions(world.manifest, [foreign, *parts[1:]], tmp_path / "none.json")
    foreign.write_text(json.dumps(content | {"answers": {}}))
    with pytest.raises(GapinitError, match=r"with all answers of \d+ samples"):
        gather_predictions(world.manifest, [foreign, *parts[1:]], tmp_path / "none.json")
    predict_several(
        world.backbone, asked, [None], [[parts[2]]], num_beams=2, batch_size=3, shard="3/3"
    )
    with pytest.raises(GapinitError, match="not parts of the same predictions"):
        gather_predictions(world.manifest, parts, tmp_path / "none.json")
    with pytest.raises(GapinitError, match="answers to another dataset than"):
        gather_predictions(world.layers, parts, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_set_of_shards_has_to_be_whole(world: SmallWorld, tmp_path: Path) -> None:
    stage = stages(world)[1]
    paths = shards(stage, tmp_path, 3)
    with pytest.raises(GapinitError, match=r"other shards are missing: 2/3"):
        shard_set([paths[0], paths[2]], "features")
    with pytest.raises(GapinitError, match="Name each shard once"):
        shard_set([paths[0], paths[1], paths[1]], "features")
    other = tmp_path / "other.h5"
    extract_features(world.backbone, world.manifest, other, batch_size=3, shard="3/3")
    with pytest.raises(GapinitError, match="shards are missing"):
        shard_set([*paths[:2], other], "features")
    stage.run(tmp_path / "whole.h5")
    with pytest.raises(GapinitError, match="expected the file or all shards of one artifact"):
        shard_set([*paths, tmp_path / "whole.h5"], "features")
    for text in ("0/4", "5/4", "2", "a/b", "1/0"):
        with pytest.raises(GapinitError, match="--shard: expected I/N"):
            Shard.parse(text)
    assert Shard.parse("1/1") == Shard.parse(None)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shards_divide_the_blocks(count: int) -> None:
    parts = [blocks_of(103, 4, Shard.parse(f"{index}/{count}")) for index in range(1, count + 1)]
    rows = [row for part in parts for block in part for row in range(103)[block]]
    assert rows == list(range(103))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from gapinit.states import extract_states
from gapinit.trunk import extract_trunk
backbone, manifest, layers, folder, pairs = sys.argv[1:]
extract_states(Path(backbone), Path(manifest), Path(folder, "s.h5"), pairs=int(pairs), seed=0)
extract_trunk(Path(backbone), Path(manifest), Path(layers), "naive", Path(folder, "t.h5"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data(world: SmallWorld, tmp_path: Path) -> None:
    """256 and 4,096 images of states and trunk: the peak grows by less than a tenth."""
    data = read_manifest(world.manifest)
    own = data.captions("train")
    peaks = []
    for count in (256, 4096):
        images = [
            replace(
                own[index % len(own)],
                image_id=index,
                path=tmp_path / f"{index}.png",
                captions=own[index % len(own)].captions[:2],
            )
            for index in range(count)
        ]
        for index, image in enumerate(images):
            if not image.path.exists():
                os.link(own[index % len(own)].path, image.path)
        folder = tmp_path / str(count)
        folder.mkdir()
        write_manifest(
            folder / "manifest.json", replace(data, root=tmp_path, splits={"train": images})
        )
        given = [world.backbone, folder / "manifest.json", world.layers, folder, count]
        command = [sys.executable, "-c", MEASURE, *map(str, given)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.1 * peaks[0], f"{peaks[1] / peaks[0]:.3f} times"
    print(f"peak memory, 4,096 images to 256: {peaks[1] / peaks[0]:.3f}")

"""One fault of each kind around a stage: a message that names the file, and nothing half-written.

Once the cause is gone, the same call completes with the result of an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gapinit.adapters.files import load_adapter
from gapinit.artifacts.artifacts import write_json
from gapinit.backbones import load_backbone
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.evaluate.image_features import read_features
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.java import JAVA_VARIABLE
from gapinit.evaluate.predict import extract_features
from gapinit.gap.gap_file import estimate_gap_file, read_gap
from gapinit.gap.layers import write_layers
from gapinit.states.states import extract_states
from gapinit.train.step_log import read_steps
from gapinit.train.trunk.write import extract_trunk, read_trunk

from ..plain_json import names
from ..small_backbone import SmallWorld, small_world
from .isolated import isolated

ODD = 'it\'s "odd" $(touch pwned) `x`; ünï 日 \n line'


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """Return a world of its own, with a trained run and image features."""
    world = small_world(tmp_path_factory.getbasetemp())
    root = tmp_path_factory.mktemp("goods") / "world"
    shutil.copytree(world.root, root)
    own = SmallWorld(root)
    own.train(root / "run")
    extract_features(own.backbone, own.manifest, root / "features.h5")
    return own


def make_states(world: SmallWorld, output: Path) -> None:
    extract_states(world.backbone, world.manifest, output, pairs=20, seed=0)


def make_trunk(world: SmallWorld, output: Path) -> None:
    extract_trunk(world.backbone, world.manifest, world.layers, "naive", output, max_tokens=32)


def make_gap(world: SmallWorld, output: Path) -> None:
    estimate_gap_file(
        [world.states], output, size=12, heldout=8, neighbours=3,
        alpha_semantic=1.0, alpha_geometric=1.0, smoothing="spot",
    )  # fmt: skip


@contextmanager
def disk(folder: Path, megabytes: int = 16) -> Iterator[Path]:
    """Yield a file system of its own, in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("make", [make_trunk, make_gap])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_full_disk(
    goods: SmallWorld,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[SmallWorld, Path], None],
    share: float,
) -> None:
    make(goods, tmp_path / "usual.h5")
    usual = (tmp_path / "usual.h5").read_bytes()
    with disk(tmp_path / "disk") as place:
        free = shutil.disk_usage(place).free
        (place / "filler").write_bytes(bytes(free - int(len(usual) * share) // 4096 * 4096))
        said = isolated(lambda: make(goods, place / "a.h5"))
        assert "a.h5: cannot be written (No space left on device)" in said and "again" in said
        noise = capfd.readouterr().err
        assert make is make_gap or "Traceback" not in noise, "HDF5 prints some for tiny files"
        assert names(place) == ["filler"]
        (place / "filler").unlink()
        assert isolated(lambda: make(goods, place / "a.h5")) == ""
        assert (place / "a.h5").read_bytes() == usual


def test_a_read_only_folder(goods: SmallWorld, tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for name, call in {
            "a.h5": lambda: make_states(goods, place / "a.h5"),
            "layers.json": lambda: write_layers(goods.gap, place / "layers.json", 1, 1),
            "run": lambda: goods.train(place / "run"),
        }.items():
            said = isolated(call)
            assert name in said and "Read-only file system" in said and "writable" in said
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert names(place) == []


@pytest.mark.parametrize("stage", ["states", "train"])
def test_missing_memory(goods: SmallWorld, tmp_path: Path, stage: str) -> None:
    def call() -> Any:
        if stage == "states":
            return make_states(goods, tmp_path / "out")
        return goods.train(tmp_path / "out")

    assert "memory" in isolated(call, memory=0)
    assert not (tmp_path / "out").exists()
    assert isolated(call) == ""


JAVAS = {
    "missing": None,
    "dies at once": "#!/bin/sh\nexit 3\n",
    "dies in the middle": "#!/bin/sh\nhead -c 20 >/dev/null\necho half\nkill -9 $$\n",
}


@pytest.mark.parametrize("name", JAVAS)
def test_java_that_is_missing_or_dies(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    references, said = tmp_path / "captions.json", tmp_path / "said.json"
    captions = [{"id": n, "image_id": 1, "caption": f"a dog runs {n}"} for n in (1, 2)]
    write_json(references, {"images": [{"id": 1}], "annotations": captions})
    write_json(said, [{"image_id": 1, "caption": "a dog"}])
    program, text = tmp_path / "java", JAVAS[name]
    if text is not None:
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv(JAVA_VARIABLE, str(program))
    with pytest.raises(GapinitError, match="[Jj]ava"):
        score_captions(references, [said], [tmp_path / "out.json"], ["cider"])
    assert not (tmp_path / "out.json").exists()


READERS: dict[str, Callable[[SmallWorld], Any]] = {
    "states.h5": lambda world: make_gap(world, world.root / "out.h5"),
    "gap.h5": lambda world: read_gap(world.gap),
    "trunk_naive.h5": lambda world: read_trunk(world.trunk("naive")),
    "features.h5": lambda world: read_features(world.root / "features.h5"),
    "layers.json": lambda world: make_trunk(world, world.root / "out.h5"),
    "data/manifest.json": lambda world: make_states(world, world.root / "out.h5"),
    "run/adapter/adapter_model.safetensors": lambda world: load_adapter(
        load_backbone(world.backbone), world.root / "run/adapter"
    ),
    "run/steps.csv": lambda world: read_steps(world.root / "run/steps.csv"),
}
"""What reads each file that a stage writes."""


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_of_another_stage(goods: SmallWorld, file: str) -> None:
    path = goods.root / file
    good = path.read_bytes()
    flip(path)
    try:
        with pytest.raises(GapinitError, match=rf"{path.name}: .*again"):
            READERS[file](goods)
    finally:
        path.write_bytes(good)
    assert "out.h5" not in names(goods.root)


FOREIGN: dict[str, Callable[[SmallWorld], Any]] = {
    "backbone/model.safetensors": lambda world: load_backbone(world.backbone),
    "backbone/config.json": lambda world: load_backbone(world.backbone),
    "backbone/tokenizer.json": lambda world: load_backbone(world.backbone),
    "tiny.yaml": lambda world: read_yaml(world.root / "tiny.yaml"),
    "image": lambda world: make_states(world, world.root / "out.h5"),
}
"""What reads each file that others make, so that no checksum lies beside it."""


@pytest.mark.parametrize("file", FOREIGN)
def test_a_truncated_file_of_others(goods: SmallWorld, file: str) -> None:
    path = goods.images("train")[0].path if file == "image" else goods.root / file
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    if file == "tiny.yaml":
        path.write_text("a: [b\n")
    try:
        with pytest.raises(GapinitError) as caught:
            FOREIGN[file](goods)
    finally:
        path.write_bytes(good)
    assert path.name in str(caught.value) or str(path.parent) in str(caught.value)
    assert "out.h5" not in names(goods.root)


def test_a_folder_with_an_odd_name(goods: SmallWorld, tmp_path: Path) -> None:
    world = SmallWorld(Path(shutil.copytree(goods.root, tmp_path / ODD)))
    for make, name in ((make_states, "states.h5"), (make_gap, "gap.h5"), (make_trunk, "t.h5")):
        make(goods, tmp_path / name)
        make(world, world.root / "out" / name)
        assert (world.root / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    world.train(world.root / "again")
    weights = "adapter/adapter_model.safetensors"
    ours, usual = (root / weights for root in (world.root / "again", goods.root / "run"))
    assert ours.read_bytes() == usual.read_bytes()
    assert not (tmp_path / "pwned").exists() and not Path("pwned").exists()


def test_a_clock_that_was_set_back(goods: SmallWorld, tmp_path: Path) -> None:
    root = Path(shutil.copytree(goods.root, tmp_path / "world"))
    for path in root.rglob("*"):
        os.utime(path, (1.0, 1.0))
    make_gap(SmallWorld(root), tmp_path / "gap.h5")
    assert (tmp_path / "gap.h5").read_bytes() == goods.gap.read_bytes()

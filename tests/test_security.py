"""Nothing that comes with data runs code, leaves its folder, or takes the machine with it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gapinit.adapters.files import load_adapter
from gapinit.artifacts import artifacts
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.backbones.hub import FILES, HubSettings, link_backbone
from gapinit.config.configuration import Config
from gapinit.config.yaml_files import check_settings, read_yaml
from gapinit.data.entries import read_text
from gapinit.data.images import load_image
from gapinit.errors import GapinitError

from .plain_json import forget_digests
from .small_backbone import SmallWorld, small_world

ROOT = Path(__file__).resolve().parents[1]


def evil(mark: Path) -> bytes:
    """Return a pickle that makes a file when it is loaded."""
    return b"cos\nsystem\n(S'touch " + str(mark).replace("'", "").encode() + b"'\ntR."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.fixture
def backbone(world: SmallWorld, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.backbone, tmp_path / "backbone"))


def test_the_pickle_of_these_tests_is_malicious(tmp_path: Path) -> None:
    pickle.loads(evil(tmp_path / "mark"))
    assert (tmp_path / "mark").exists()


NAMES = ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "cache.pkl")


def plant(folder: Path, mark: Path) -> None:
    """Put a malicious pickle under every name that loaders look for."""
    for name in NAMES:
        (folder / name).write_bytes(evil(mark))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", evil(mark))
        file.writestr("archive/version", "3")
    (folder / "adapter_model.bin").write_bytes(archive.getvalue())
    np.save(folder / "a.npy", np.array([1], dtype=object), allow_pickle=True)


def test_pickled_weights_beside_good_ones_are_not_opened(backbone: Path, tmp_path: Path) -> None:
    plant(backbone, tmp_path / "mark")
    load_backbone(backbone)
    assert not (tmp_path / "mark").exists()


def test_pickled_weights_alone_are_refused(backbone: Path, tmp_path: Path) -> None:
    plant(backbone, tmp_path / "mark")
    (backbone / "model.safetensors").unlink()
    with pytest.raises(GapinitError, match="pickled weights are never loaded"):
        load_backbone(backbone)
    with pytest.raises(GapinitError, match="pickled weights"):
        link_backbone(
            HubSettings(name="x", family="hub", repository="a/b", folder=backbone), tmp_path / "out"
        )
    assert not (tmp_path / "mark").exists()
    assert not any("bin" in name or "pt" in name for name in FILES)


@pytest.mark.parametrize("index", [True, False])
def test_an_index_that_names_a_pickle_is_refused(
    backbone: Path, tmp_path: Path, index: bool
) -> None:
    plant(backbone, tmp_path / "mark")
    (backbone / "model.safetensors").write_bytes(evil(tmp_path / "mark"))
    if index:
        (backbone / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}})
        )
    with pytest.raises(GapinitError):
        load_backbone(backbone)
    assert not (tmp_path / "mark").exists()


def test_a_pickled_adapter_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run")
    folder = run / "adapter"
    forget_digests(folder / "adapter_model.safetensors")
    plant(folder, tmp_path / "mark")
    load_adapter(load_backbone(world.backbone), folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(GapinitError, match=r"adapter_model\.safetensors: no such file"):
        load_adapter(load_backbone(world.backbone), folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["auto_mapping", "megatron_config"])
def test_an_adapter_cannot_have_modules_imported(
    world: SmallWorld, tmp_path: Path, key: str
) -> None:
    folder = world.train(tmp_path / "run") / "adapter"
    forget_digests(folder / "adapter_config.json")
    config = read_json(folder / "adapter_config.json")
    config |= {key: {"parent_library": "evil"}, "megatron_core": "evil"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    with pytest.raises(GapinitError, match=f"adapter_config.json: the key '{key}'"):
        load_adapter(load_backbone(world.backbone), folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor"])
def test_code_beside_weights_is_never_run(backbone: Path, tmp_path: Path, file: str) -> None:
    mark = tmp_path / "mark"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Evil: pass\n"
    (backbone / "evil.py").write_text(code)
    names = (
        [path.name for path in backbone.glob("*processor*.json")] if file == "processor" else [file]
    )
    for name in names:
        config = read_json(backbone / name)
        config["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
            "AutoProcessor": "evil.Evil",
            "AutoImageProcessor": "evil.Evil",
            "AutoModelForImageTextToText": "evil.Evil",
        }
        config["trust_remote_code"] = True
        (backbone / name).write_text(json.dumps(config))
    try:
        load_backbone(backbone)
    except GapinitError as error:
        assert str(backbone) in str(error)
    assert not mark.exists()


def test_an_unknown_model_type_with_code_is_refused(backbone: Path, tmp_path: Path) -> None:
    config = read_json(backbone / "config.json") | {"model_type": "../evil"}
    (backbone / "config.json").write_text(json.dumps(config))
    with pytest.raises(GapinitError, match="is not supported"):
        load_backbone(backbone)


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/mark']\n")
    with pytest.raises(GapinitError, match=r"a\.yaml: not valid YAML"):
        read_yaml(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("read", [read_json, read_text])
def test_a_text_without_end_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "captions.json"
    with path.open("wb") as file:
        file.truncate(artifacts.MAX_JSON + 1)  # sparse: it takes no room
    with pytest.raises(GapinitError, match=r"captions\.json: \d+ bytes, expected at most"):
        read(path)


def test_a_decompression_bomb_is_an_error(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(GapinitError, match=r"bomb\.png: damaged or unreadable image"):
        load_image(tmp_path / "bomb.png")


def test_no_image_is_handed_to_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(GapinitError, match=r"a\.jpg"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "name", ["a b", "$(touch x)", "a;b", "../a", "a\nb", "a'b", "-a", "a/b", ""]
)
def test_names_hold_nothing_that_a_shell_reads(name: str) -> None:
    base = {
        "name": "a", "backbone": "b", "datasets": {"in-domain": "c"}, "seeds": [1],
        "calibration": {}, "layers": {"num_layers": 1, "exclude_bottom": 0}, "experiments": ["e"],
    }  # fmt: skip
    check_settings(base, Config, "x")
    for changed in (
        base | {"name": name},
        base | {"backbone": name},
        base | {"datasets": {"in-domain": name}},
        base | {"experiments": [name]},
        base | {"backbones": {name: "a"}},
        base | {"figures": [name]},
        base | {"folders": {name: "/x"}},
    ):
        with pytest.raises(GapinitError):
            check_settings(changed, Config, "x")


@pytest.mark.parametrize("path", ["br{a}ce", "new\nline", "es\x1bcape"])
def test_paths_that_no_rule_can_have_are_told(path: str) -> None:
    with pytest.raises(GapinitError, match="a workflow's path cannot contain"):
        check_settings({"results": path, "name": "a"}, Config, "x")


@pytest.mark.slow
def test_paths_of_a_shell_s_own_signs_run_nothing(tmp_path: Path) -> None:
    """One real job whose results, working folder and command hold what a shell would run."""
    folder = tmp_path / 'it\'s $(touch pwned) `touch pwned`; "ü" &'
    folder.mkdir()
    results = "re $(touch pwned) 'sults' \";touch pwned;\" | ü"
    # Snakemake takes no double quotes in --config; a file may have them.
    (folder / "mine.yaml").write_text(f"results: {json.dumps(results)}\n")
    target = f"{results}/1_data/scenes-test/manifest.json"
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "snakemake"), target, "--cores", "1",
            "--snakefile", str(ROOT / "Snakefile"),
            "--configfile", str(ROOT / "config/test.yaml"), "mine.yaml",
        ],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (folder / target).is_file()
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()

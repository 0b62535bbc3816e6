"""`gapinit data check` names each defect of a folder, in every format, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gapinit.cli import app
from gapinit.config.yaml_files import read_settings
from gapinit.data.dataset import prepare_dataset
from gapinit.data.folder import FolderSettings, read_folder
from gapinit.errors import GapinitError

from . import caption_damages, question_damages
from .dataset_folders import GOOD, LLAVA, VQA_VAL, draw

DATASETS = Path(__file__).resolve().parents[1] / "config" / "datasets"
DAMAGES = {**caption_damages.DAMAGES, **question_damages.DAMAGES}
PREPARED: dict[str, tuple[str, Path | None]] = {
    "karpathy": ("local.yaml", None),
    "flickr30k": ("local.yaml", None),
    "captions2017": ("local.yaml", None),
    "single": ("local.yaml", Path("mine.json")),
    "vqa": ("vqav2.yaml", Path(".")),
    "okvqa": ("okvqa.yaml", None),
    "pope": ("pope.yaml", None),
    "llava": ("llava-instruct.yaml", Path(LLAVA)),
}
"""The dataset file of a folder for `data prepare`, and its annotations if not the usual ones."""
ENTRY = r"line \d+|\w*\[\d+\].*"
OF_THE_FOLDER = "split|in 'test'|also that of|a link"  # found by comparing files, not entries


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, make in GOOD.items():
        folders[name] = tmp_path_factory.mktemp(name) / "data"
        make(folders[name])
    return folders


def check(target: Path) -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, ["data", "check", str(target)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout.splitlines()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_folder_is_clean(made: dict[str, Path], name: str) -> None:
    status, lines = check(made[name])
    assert (status, lines[-1]) == (0, "no defects"), lines
    assert lines[-2].endswith(" images decoded") and not lines[-2].startswith("0 ")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_told_with_file_and_entry(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """`data check` lists each defect; `data prepare`, with the same readers, refuses the entry."""
    folder, change, told = DAMAGES[name]
    root = tmp_path / "data"
    shutil.copytree(made[folder], root)
    change(root)
    status, lines = check(root)
    assert status == 1
    count = len(told)
    assert lines[-1] == ("1 defect" if count == 1 else f"{count} defects"), lines
    read = []
    for file, entry, words in told:
        start = f"{root / file}: {entry}: " if entry else f"{root / file}: "
        found = [line for line in lines if line.startswith(start) and words in line]
        assert found, lines
        if re.fullmatch(ENTRY, entry) and not re.search(OF_THE_FOLDER, words):
            read += found
    if read and folder in PREPARED:
        dataset, annotations = PREPARED[folder]
        with pytest.raises(GapinitError) as caught:
            read_folder(read_settings(DATASETS / dataset, FolderSettings), root, annotations)
        assert all(line in str(caught.value) for line in read)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_defect_is_listed_without_a_limit(
    made: dict[str, Path], tmp_path: Path, mark: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(made["pope"], root)
    path = root / "pope" / "coco_pope_random.json"
    entry = {"question_id": 0, "image": "no.jpg", "text": " ", "label": "perhaps"}
    path.write_text(mark + "\r\n".join(json.dumps({**entry, "question_id": n}) for n in range(60)))
    status, lines = check(root)
    assert (status, lines[-1], len(lines)) == (1, "121 defects", 122)
    assert lines.count(lines[0]) == 1


def test_a_folder_made_by_gapinit_is_clean(tmp_path: Path) -> None:
    for name in ("scenes-test", "scenes-test-pretraining"):
        prepare_dataset(DATASETS / f"{name}.yaml", tmp_path / name)
        assert check(tmp_path / name)[1][-1] == "no defects"
    assert check(tmp_path)[1][-1] == "no defects"


def test_the_manifest_of_a_local_folder_leads_to_it(made: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(made["captions2017"], root)
    prepare_dataset(DATASETS / "local.yaml", tmp_path / "out", data_root=root)
    assert check(tmp_path / "out")[0] == 0
    (root / "val2017" / "000000000006.jpg").unlink()
    status, lines = check(tmp_path / "out")
    assert status == 1 and "captions_val2017.json: images[0]: names the image" in lines[0]


def test_datasets_side_by_side_are_found_each_with_its_root(
    made: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("karpathy", "flickr30k", "vqa"):
        shutil.copytree(made[name], tmp_path / name)
    status, lines = check(tmp_path)
    assert (status, lines[-1]) == (0, "no defects"), lines


def test_paths_from_where_one_is(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(made["captions2017"])
    assert check(tmp_path / "link")[0] == 0
    monkeypatch.chdir(made["captions2017"])
    assert check(Path("."))[0] == 0
    monkeypatch.chdir("annotations")
    assert check(Path("captions_val2017.json"))[0] == 0
    assert check(Path(".."))[0] == 0


def test_one_annotation_file(made: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(made["everything"], root)
    (root / "dataset_coco.json").write_text("{")
    assert check(root)[0] == 1
    for name in ("annotations/captions_val2014.json", "pope/coco_pope_random.json", LLAVA):
        assert check(root / name)[0] == 0
    assert check(root / "dataset_coco.json")[0] == 1
    questions = root / "vqav2" / VQA_VAL
    assert check(questions)[0] == 0
    assert check(questions.with_name("v2_mscoco_val2014_annotations.json"))[0] == 0


def test_what_cannot_be_checked_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    for target, words in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "notes.txt", "expected a folder, an annotation file"),
        (tmp_path, "no annotation file"),
    ):
        with pytest.raises(GapinitError, match=words):
            check(target)


def configuration(folder: Path, **datasets: str) -> Path:
    """Write a configuration whose datasets are folders of one's own."""
    (folder / "datasets").mkdir()
    for name, root in datasets.items():
        (folder / "datasets" / f"{name}.yaml").write_text(f"name: {name}\nroot: {root}\n")
    scenes = (DATASETS / "scenes-test-ood.yaml").read_text()
    (folder / "datasets" / "scenes-test-ood.yaml").write_text(scenes)
    parts = {"in-domain": "mine", "calibration": None, "ood": "scenes-test-ood"}
    content = {"results": str(folder / "results"), "datasets": {**parts, "pope": "other"}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def test_a_configuration(made: dict[str, Path], tmp_path: Path) -> None:
    mine, other = tmp_path / "a", tmp_path / "b"
    shutil.copytree(made["captions2017"], mine)
    shutil.copytree(made["flickr30k"], other)
    target = configuration(tmp_path, mine=str(mine), other=str(other))
    for name in ("1002.jpg", "1003.jpg", "1000.jpg", "1001.jpg"):
        draw(other / "flickr30k-images" / name, int(name[:4]))
    done = CliRunner().invoke(app, ["data", "check", str(target)])
    assert done.exit_code == 0, done.stdout
    assert "dataset 'scenes-test-ood': not made yet" in done.stderr
    assert check(tmp_path / "datasets" / "mine.yaml")[0] == 0
    shutil.copyfile(mine / "train2017" / "000000000002.jpg", other / "flickr30k-images/1003.jpg")
    status, lines = check(target)
    assert (status, lines[-1]) == (1, "1 defect"), lines
    assert "captions_train2017.json: images[1]: the picture (000000000002.jpg and 1003" in lines[0]


def test_a_configuration_of_which_nothing_is_there(tmp_path: Path) -> None:
    target = DATASETS.parent / "test.yaml"
    content = {**yaml.safe_load(target.read_text()), "results": str(tmp_path / "results")}
    (tmp_path / "datasets").symlink_to(DATASETS)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert check(tmp_path / "mine.yaml") == (0, ["nothing to check yet"])

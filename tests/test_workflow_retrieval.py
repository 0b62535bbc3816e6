"""Downloads by the workflow: from zip files on a server to checked datasets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from gapinit.data.downloads import read_downloads
from gapinit.data.manifest import read_manifest

from .dataset_folders import retrieved
from .file_server import Site, zipped
from .plain_json import write_json
from .workflow_calls import ROOT, snakemake

TABLE = ROOT / "config" / "downloads.yaml"
QUESTIONS, ANSWERS = "OpenEnded_mscoco_{}2014_questions.json", "mscoco_{}2014_annotations.json"
HELD = {
    "coco-train2014": ("coco", "train2014/*"),
    "coco-val2014": ("coco", "val2014/*"),
    "coco-annotations2017": ("coco", "annotations/captions_train2017.json"),
    "karpathy-splits": ("karpathy", "*.json"),
    "vqav2-train-questions": ("coco/vqav2", f"v2_{QUESTIONS.format('train')}"),
    "vqav2-train-annotations": ("coco/vqav2", f"v2_{ANSWERS.format('train')}"),
    "vqav2-val-questions": ("coco/vqav2", f"v2_{QUESTIONS.format('val')}"),
    "vqav2-val-annotations": ("coco/vqav2", f"v2_{ANSWERS.format('val')}"),
    "okvqa-val-questions": ("coco/okvqa", QUESTIONS.format("val")),
    "okvqa-val-annotations": ("coco/okvqa", ANSWERS.format("val")),
    "pope-random": ("coco/pope", "coco_pope_random.json"),
    "pope-popular": ("coco/pope", "coco_pope_popular.json"),
    "pope-adversarial": ("coco/pope", "coco_pope_adversarial.json"),
    "llava-instruct-150k": ("coco/llava", "llava_instruct_150k.json"),
}
"""The folder of each download, and the files in it."""


@pytest.fixture
def site(server: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Path]:
    """Serve small files under the real names; return the site and a table with their checksums."""
    folder = tmp_path_factory.mktemp("made")
    retrieved(folder)
    write_json(folder / "karpathy" / "dataset_flickr30k.json", {"images": []})
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    files: dict[str, bytes] = {}
    for name, download in read_downloads(TABLE).items():
        if name not in HELD:
            continue
        root, pattern = folder / HELD[name][0], HELD[name][1]
        held = {str(path.relative_to(root)): path.read_bytes() for path in root.glob(pattern)}
        body = zipped(held) if download.unpack else next(iter(held.values()))
        files[download.file_name] = body
        known = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        there = [path for path in download.holds if any(one.startswith(path) for one in held)]
        entries[name] |= {**known, "holds": there}
    table = folder / "downloads.yaml"
    table.write_text(yaml.safe_dump(entries), encoding="utf-8")
    server.reset(files)
    return server, table


DATASETS = ("coco", "coco-calibration", "vqav2", "okvqa", "pope", "llava-instruct")


def options(site: tuple[Site, Path]) -> list[str]:
    served, table = site
    return [
        "--configfile",
        str(ROOT / "config/paper.yaml"),
        "--config",
        f"mirror={served.url}/files",
        f"downloads={table}",
    ]


@pytest.mark.slow
def test_every_dataset_of_the_paper_is_retrieved_and_checked(
    site: tuple[Site, Path], tmp_path: Path
) -> None:
    targets = [f"results/1_data/{name}/manifest.json" for name in DATASETS]
    site[0].break_after = [50]  # the first download is interrupted and requested again
    snakemake(tmp_path, *options(site), "--", *targets)
    kinds = {
        name: read_manifest(tmp_path / target)
        for name, target in zip(DATASETS, targets, strict=True)
    }
    expected = ["captions", "captions", "vqa", "vqa", "pope", "conversations"]
    assert [kinds[name].kind for name in DATASETS] == expected
    found = {sample.image_id for sample in kinds["coco-calibration"].split("train")}
    assert found == {1, 2, 3, 4}, "the others are in Karpathy's validation and test splits"
    assert len(kinds["vqav2"].split("train")) == 6 and len(kinds["pope"].split("test")) == 12
    # Only the interrupted download is requested twice, though six datasets share the images.
    asked = [request["path"] for request in site[0].asked]
    assert len(asked) == 15 and len(set(asked)) == 14


@pytest.mark.slow
def test_a_wrong_checksum_stops_with_its_name(site: tuple[Site, Path], tmp_path: Path) -> None:
    served, table = site
    name = "coco_pope_random.json"
    served.files[name] = served.files[name].replace(b"yes", b"no!")
    target = ("--show-failed-logs", "--", "data/unpacked/pope-random.json")
    output = snakemake(tmp_path, *options(site), *target, expect=1)
    assert "SHA-256" in output and "coco_pope_random.json" in output
    assert "Traceback" not in output
    assert not (tmp_path / "data/downloads/coco_pope_random.json").exists()


def test_a_wrong_table_is_one_message(tmp_path: Path) -> None:
    table = tmp_path / "downloads.yaml"
    table.write_text("coco: {url: 'ftp://x/y.zip', folder: coco, holds: [a]}\n")
    configuration = ["--configfile", str(ROOT / "config/paper.yaml")]
    output = snakemake(
        tmp_path, "--dry-run", *configuration, "--config", f"downloads={table}", expect=1
    )
    assert f"error: {table}: coco: " in output and "Traceback" not in output

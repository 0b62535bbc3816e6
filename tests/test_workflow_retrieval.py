"""Retrieval by the workflow itself: from a server's zip files to checked datasets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gapinit.data.downloads import read_downloads
from gapinit.data.manifest import read_manifest

from .file_server import Site, jpeg, zipped
from .test_data_folder import coco_name, karpathy, vqa
from .workflow_calls import ROOT, snakemake

TABLE = ROOT / "config" / "downloads.yaml"
TRAIN, VAL = [1, 2, 3, 4], [101, 102, 103, 104]


def contents(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Make what each download holds, in the real formats: name -> files."""
    captions = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (1, 2, 101, 103)],
        "annotations": [{"id": i, "image_id": i, "caption": f"b {i}"} for i in (1, 2, 101, 103)],
    }
    vqa(folder, "v2_", "train", TRAIN)
    vqa(folder, "v2_", "val", VAL)
    vqa(folder, "", "val", VAL, raw=True)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    pope = "".join(
        json.dumps({"question_id": n, "image": coco_name(103), "text": "Is it?", "label": "yes"})
        + "\n"
        for n in (1, 2)
    ).encode()
    talk = [
        {
            "id": "1",
            "image": f"{image_id:012d}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": f"That {image_id}."},
            ],
        }
        for image_id in (1, 101)
    ]

    def json_file(name: str, value: Any) -> list[tuple[str, bytes]]:
        return [(name, json.dumps(value).encode())]

    def some(part: str, version: str = "v2_") -> list[tuple[str, bytes]]:
        return [item for item in made.items() if item[0].startswith(version + part)]

    return {
        "coco-train2014": [(f"train2014/{coco_name(i)}", jpeg(i)) for i in TRAIN],
        "coco-val2014": [(f"val2014/{coco_name(i)}", jpeg(i)) for i in VAL],
        "coco-annotations2017": json_file("annotations/captions_train2017.json", captions),
        "karpathy-splits": json_file("dataset_coco.json", {"images": karpathy()})
        + json_file("dataset_flickr30k.json", {"images": []}),
        "vqav2-train-questions": some("OpenEnded_mscoco_train"),
        "vqav2-train-annotations": some("mscoco_train"),
        "vqav2-val-questions": some("OpenEnded_mscoco_val"),
        "vqav2-val-annotations": some("mscoco_val"),
        "okvqa-val-questions": some("OpenEnded_mscoco_val", version=""),
        "okvqa-val-annotations": some("mscoco_val2014_ann", version=""),
        **{
            f"pope-{category}": [(f"coco_pope_{category}.json", pope)]
            for category in ("random", "popular", "adversarial")
        },
        "llava-instruct-150k": json_file("llava_instruct_150k.json", talk),
    }


@pytest.fixture
def site(server: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Path]:
    """Serve small files under the real names; return the site and a table with their digests."""
    folder = tmp_path_factory.mktemp("made")
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    files: dict[str, bytes] = {}
    for name, held in contents(folder).items():
        download = read_downloads(TABLE)[name]
        if download.unpack:
            body = zipped(dict(held))
        else:
            ((_, body),) = held
        files[download.file_name] = body
        entries[name] |= {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        entries[name]["holds"] = [
            path for path in entries[name]["holds"]
            if any(made.startswith(path) for made, _ in held)
        ]  # fmt: skip
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
    site[0].break_after = [50]  # the first file breaks off, and is asked for again
    snakemake(tmp_path, *options(site), "--", *targets)
    kinds = {name: read_manifest(tmp_path / f"results/1_data/{name}/manifest.json")
             for name in DATASETS}  # fmt: skip
    assert [kinds[name].kind for name in DATASETS] == [
        "captions", "captions", "vqa", "vqa", "pope", "conversations"
    ]  # fmt: skip
    found = {sample.image_id for sample in kinds["coco-calibration"].split("train")}
    assert found == {1, 2, 101}, "103 is in Karpathy's test split"
    assert len(kinds["vqav2"].split("train")) == 4 and len(kinds["pope"].split("test")) == 6
    # One download broke off and was asked for again; nothing else is fetched twice, though the
    # images serve six datasets.
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

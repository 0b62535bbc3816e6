"""What is said to a wrong configuration before any job, and which jobs a right one plans."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from gapinit.errors import GapinitError
from gapinit.workflow.plan import read_plan

from .workflow_calls import ROOT, make_photographs, snakemake

PAPER = ROOT / "config/paper.yaml"
LOCAL = ROOT / "config/local.yaml"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nmae=x", "--config: unknown key 'nmae' (did you mean 'name'?)"),
        ("seeds=first", "--config: key 'seeds': input should be a valid list"),
        ("training={'epochs': 'many'}", "--config: key 'training.epochs'"),
        ("backbone=blip9", "--config: key 'backbone': unknown name 'blip9'"),
        ("datasets={'in-domain': 'koko'}", "key 'datasets.in-domain': unknown name 'koko'"),
        ("experiments=['table99']", "key 'experiments': unknown name 'table99'"),
        ("calibration={'sizes': [99999]}", "found 1200 images in the split 'train'"),
        ("calibration={'size': 4}", "4 pairs has fewer than 10 neighbours"),
        ("backbones={'gemma3': 'b'}", "--config: key 'backbones.gemma3': unknown name 'b'"),
        ("layers={'num_layers': 7}", "key 'layers.num_layers': 7 layers, but"),
        ("experiments=['table2']", "key 'figures': 'figure1b' draws a table with VQAv2_accuracy"),
        ("seeds", "--config seeds: expected KEY=VALUE"),
    ],
)
def test_a_wrong_option_is_named(option: str, message: str) -> None:
    with pytest.raises(GapinitError) as error:
        read_plan(ROOT / "config", None, [option])
    assert message in str(error.value)


def test_an_unknown_method_names_file_and_row(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "config", tmp_path / "config"))
    table = folder / "experiments/table2.yaml"
    table.write_text(table.read_text().replace("method: pissa", "method: pizza"))
    with pytest.raises(GapinitError) as error:
        read_plan(folder, None)
    assert f"{table}: row 'pissa': key 'method': unknown method 'pizza'" in str(error.value)


def test_a_local_folder_has_to_be_named_and_whole(tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match="give its path with --config data_root=FOLDER"):
        read_plan(ROOT / "config", LOCAL)
    with pytest.raises(GapinitError, match="no annotation file"):
        read_plan(ROOT / "config", LOCAL, [f"data_root={tmp_path}"])


def test_snakemake_shows_one_message_and_no_traceback(tmp_path: Path) -> None:
    """Of a folder in which an image is missing."""
    data = make_photographs(tmp_path / "photographs")
    image = next((data / "images/train2014").iterdir())
    image.unlink()
    options = ["--configfile", str(LOCAL), "--config", f"data_root={data}"]
    output = snakemake(tmp_path, *options, expect=1)
    assert "error: " in output and image.name in output
    for word in ("steps (", "Traceback", 'File "'):
        assert word not in output


def test_a_damaged_image_stops_before_anything_expensive(tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "photographs")
    image = next((data / "images/train2014").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    options = ["--configfile", str(LOCAL), "--show-failed-logs", "--config", f"data_root={data}"]
    output = snakemake(tmp_path, *options, expect=1)
    assert image.name in output and "damaged image" in output
    assert "rule backbone:" not in output and "Traceback" not in output
    assert "Pretrain" not in output.replace("Pretraining", "").split("Error in rule")[0]


def test_the_paper_is_planned_without_any_file(tmp_path: Path) -> None:
    """Retrieval and every run, in less time than anybody waits for a plan; one dataset is there."""
    data = make_photographs(tmp_path / "my vqa")
    started = time.monotonic()
    output = snakemake(
        tmp_path,
        *("--dry-run", "--printshellcmds", "--configfile", str(PAPER)),
        *("--config", "mirror=http://127.0.0.1:9/mirror", f"folders={ {'okvqa': str(data)} }"),
    )
    assert time.monotonic() - started < 20
    for line in (
        "Retrieve train2014.zip",
        "Retrieve v2_Questions_Train_mscoco.zip",
        "Unpack flickr30k-images",
        "Dataset coco-calibration",
        "Backbone blip2-opt-2.7b",
        "Layers of gemma3-4b",
        "Train gemma3-4b/coco/gap-init/rank1_naive_epochs1/in-domain-256/seed42",
        "Train gemma3-4b/coco/gap-init/rank1_naive_epochs5/in-domain-256/seed42",
        "Train qwen2-vl-7b-instruct/coco/lora-gaussian/rank8_naive_epochs5/no-gap/seed42",
        "Predictions for vqav2, okvqa, pope by blip2-opt-2.7b/vqav2/gap-init",
        "table4",
        "table8",
        "table12",
        "--mirror http://127.0.0.1:9/mirror",
    ):
        assert line in output
    trained = [line for line in output.splitlines() if ": Train " in line]
    assert len(trained) == len({line.split(": Train ")[1] for line in trained})
    # A backbone's own recipe reaches its jobs.
    for name, size in (("gemma3-4b", 16), ("qwen2-vl-7b-instruct", 16), ("blip2-opt-2.7b", 64)):
        commands = [line for line in output.splitlines() if " predict --backbone " in line]
        own = [line for line in commands if f"/1_backbones/{name} " in line]
        assert own and all(f"--batch-size {size}" in line for line in own)
    # A folder that is there is read where it lies, and nothing of it is retrieved.
    (prepare,) = [
        line for line in output.splitlines()
        if "datasets/okvqa.yaml" in line and "data prepare" in line
    ]  # fmt: skip
    assert f"--data-root '{data}'" in prepare
    assert "Retrieve OpenEnded_mscoco_val2014_questions.json.zip" not in output
    assert not (tmp_path / "data").exists()


def test_a_folder_without_the_calibration_file_is_refused(tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "my coco")
    folders = {name: str(data) for name in ("coco", "coco-calibration")}
    options = ["calibration={'sizes': [20], 'size': 20, 'heldout': 9}", "experiments=['table2']"]
    with pytest.raises(GapinitError, match=r"captions_train2017\.json"):
        read_plan(ROOT / "config", PAPER, [*options, "figures=[]", f"folders={folders}"])

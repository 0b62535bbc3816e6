"""The workflow end to end on `config/test.yaml`, and what it says to a wrong configuration."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from gapinit.artifacts.artifacts import read_json
from gapinit.config.configuration import Config
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.write import make_scenes
from gapinit.report.reference import make_reference, outdated

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).parent / "snakemake"


def snakemake(folder: Path, *arguments: str, expect: int = 0) -> str:
    """Run the workflow from `folder`, which holds its results and Snakemake's own records."""
    command = [str(SNAKEMAKE), "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == expect, output[-6000:]
    return output


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every rule once, in a folder whose name holds a space."""
    folder = tmp_path_factory.mktemp("a workflow")
    snakemake(folder, "--configfile", str(ROOT / "config/test.yaml"))
    return folder


@pytest.mark.slow
class TestWholeWorkflow:
    def test_every_table_and_figure_is_there(self, finished: Path) -> None:
        results = finished / "results/test"
        for table in (
            "test-captioning",
            "test-transfer",
            "test-questions",
            "test-instruct",
            "test-dynamics",
            "test-backbones",
        ):
            for suffix in ("csv", "md", "tex"):
                assert (results / f"6_tables/{table}.{suffix}").stat().st_size > 0
        for figure in (
            "figure1a",
            "figure1b",
            "dynamics_loss",
            "dynamics_gradnorm",
            "figure1c",
            "figure2",
            "figure3",
            "figure4",
            "figure5",
        ):
            for suffix in ("pdf", "png", "svg", "csv"):
                assert (results / f"7_figures/{figure}.{suffix}").stat().st_size > 0
        for name in ("claims.csv", "claims.md", "6_tables/runs.csv", "6_tables/runs.parquet"):
            assert (results / name).stat().st_size > 0
        page = (results / "report.html").read_text(encoding="utf-8")
        assert "<html" in page
        # Every run leads to its log and its adapter, which lie beside the page.
        links = set(re.findall(r'href="(?!#)([^"]+)"', page))
        assert len(links) > 20 and all((results / unquote(link)).exists() for link in links)

    def test_it_can_be_kept_as_a_reference(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Manifests name images from the folder that the workflow ran in.
        monkeypatch.chdir(finished)
        results, kept = finished / "results/test", tmp_path / "reference"
        make_reference(results, kept, ROOT)
        config = Config.model_validate(read_json(results / "configuration.json"))
        assert outdated(kept, config, ROOT) == []
        page = (kept / "report.html").read_text(encoding="utf-8")
        assert not re.search(r'href="(?!#)', page)

    def test_snakemakes_own_report_has_every_table_and_figure(
        self, finished: Path, tmp_path: Path
    ) -> None:
        archive = tmp_path / "r.zip"
        snakemake(
            finished, "--configfile", str(ROOT / "config/test.yaml"), "--report", str(archive)
        )
        with zipfile.ZipFile(archive) as opened:
            names = {Path(name).name for name in opened.namelist()}
        for stem in ("test-captioning", "test-backbones"):
            assert {f"{stem}.{suffix}" for suffix in ("csv", "md", "tex")} <= names
        assert {"claims.csv", "runs.csv", "figure1a.svg", "figure5.pdf"} <= names

    def test_a_cell_is_the_score_of_its_run(self, finished: Path) -> None:
        results = finished / "results/test"
        table = rows(results / "6_tables/test-captioning.csv")
        assert {line["row"] for line in table} >= {"gap-init", "pissa", "all-layers", "zero-shot"}
        for line in table:
            scores = results / "5_evaluate/runs" / line["runs"] / "scenes-test.scores.json"
            measured = json.loads(scores.read_text(encoding="utf-8"))["metrics"][line["metric"]]
            assert float(line["measured"]) == pytest.approx(measured, abs=1e-9)

    def test_questions_are_scored_on_their_benchmarks(self, finished: Path) -> None:
        results = finished / "results/test"
        table = rows(results / "6_tables/test-questions.csv")
        where = {
            "VQAv2_accuracy": ("scenes-test-vqa", "accuracy"),
            "OKVQA_accuracy": ("scenes-test-okvqa", "accuracy"),
            "POPE_F1": ("scenes-test-pope", "mean_f1"),
        }
        assert {line["metric"] for line in table} == set(where)
        for line in table:
            dataset, name = where[line["metric"]]
            found = []
            for run in line["runs"].split(";"):
                assert run.startswith("mini-blip2-test/scenes-test-vqa/")
                scores = results / "5_evaluate/runs" / run / f"{dataset}.scores.json"
                found.append(json.loads(scores.read_text(encoding="utf-8"))["metrics"][name])
            assert float(line["measured"]) == pytest.approx(sum(found) / len(found), abs=1e-9)

    def test_conversations_are_trained_on(self, finished: Path) -> None:
        runs = finished / "results/test/4_train/runs/mini-blip2-test/scenes-test-instruct/gap-init"
        (run,) = runs.rglob("run.json")
        record = json.loads(run.read_text(encoding="utf-8"))
        assert record["factors"]["dataset"] == "scenes-test-instruct"
        assert record["recipe"]["max_tokens"] == 88

    def test_trainings_are_measured_without_scores(self, finished: Path) -> None:
        results = finished / "results/test"
        table = rows(results / "6_tables/test-dynamics.csv")
        assert {line["row"] for line in table} == {"lora", "pissa", "loftq"}
        for line in table:
            assert float(line["measured"]) > 0, line["metric"]
            assert not (results / "5_evaluate/runs" / line["runs"]).exists()
        tidy = rows(results / "6_tables/runs.csv")
        trainings = [line for line in tidy if line["evaluated"] == "training"]
        assert {line["method"] for line in trainings} == {"lora-kaiming", "pissa-16", "loftq"}

    def test_other_backbones_go_through_every_rule_and_are_compared_with_themselves(
        self, finished: Path
    ) -> None:
        results = finished / "results/test"
        names = ("mini-qwen2-vl-test", "mini-gemma3-test")
        lines = {line["row"]: line for line in rows(results / "6_tables/test-backbones.csv")}
        for part, name in zip(("qwen2-vl", "gemma3"), names, strict=True):
            lora, gap_init = lines[f"{part}-lora"], lines[f"{part}-gap-init"]
            assert lora["runs"].startswith(f"{name}/") and gap_init["runs"].startswith(f"{name}/")
            difference = float(lora["measured"]) - float(gap_init["measured"])
            assert float(lora["vs_reference"]) == pytest.approx(difference)
            assert gap_init["vs_reference"] == ""
            assert (results / f"3_gap/{name}/layers.json").is_file()
        text = (results / "6_tables/test-backbones.md").read_text(encoding="utf-8")
        assert f"Measured: backbones {' and '.join(names)}, fine-tuned" in text

    def test_published_numbers_stand_beside(self, finished: Path) -> None:
        table = rows(finished / "results/test/6_tables/test-captioning.csv")
        published = {line["row"]: line["published"] for line in table if line["metric"] == "CIDEr"}
        assert float(published["gap-init"]) == 140.59
        assert published["zero-shot"] == ""

    def test_meteor_only_where_a_table_asks_for_it(self, finished: Path) -> None:
        runs = finished / "results/test/5_evaluate/runs"
        transfer = json.loads(next(runs.rglob("scenes-test-ood.scores.json")).read_text())
        captioning = json.loads(next(runs.rglob("scenes-test.scores.json")).read_text())
        assert "METEOR" in transfer["metrics"]
        assert "METEOR" not in captioning["metrics"]

    def test_a_second_call_has_nothing_to_do(self, finished: Path) -> None:
        output = snakemake(finished, "--configfile", str(ROOT / "config/test.yaml"))
        assert "Nothing to be done" in output

    def test_training_is_the_same_again(self, finished: Path) -> None:
        run = "mini-blip2-test/scenes-test/gap-init/rank1_naive_epochs1/in-domain-24/seed42"
        folder = finished / "results/test/4_train/runs" / run
        before = (folder / "adapter/adapter_model.safetensors").read_bytes()
        steps = (folder / "steps.csv").read_bytes()
        shutil.rmtree(folder)
        target = f"results/test/4_train/runs/{run}/run.json"
        snakemake(finished, "--configfile", str(ROOT / "config/test.yaml"), "--", target)
        assert (folder / "adapter/adapter_model.safetensors").read_bytes() == before
        assert (folder / "steps.csv").read_bytes() == steps

    def test_summary_names_the_report(self, finished: Path) -> None:
        command = [sys.executable, "-m", "gapinit", "summary", "results/test"]
        with pytest.raises(subprocess.CalledProcessError) as wrong:
            subprocess.run([*command[:-1], "nowhere"], check=True, capture_output=True, text=True)
        assert wrong.value.stderr.startswith("error: nowhere/6_tables: no table here")

    def test_a_local_folder_goes_through_the_same_chain(self, finished: Path) -> None:
        data = finished / "my photographs"
        make_scenes(
            ScenesSettings.model_validate(
                {
                    "name": "photographs",
                    "generator": "scenes",
                    "layout": "coco",
                    "domain": "outdoor",
                    "seed": 5,
                    "images": {"train": 52, "val": 2, "test": 8},
                }
            ),
            data,
        )
        options = [f"data_root={data}", "backbone=mini-blip2-test", "gap={'neighbours': 5}"]
        snakemake(
            finished,
            "--configfile",
            str(ROOT / "config/local.yaml"),
            "--config",
            *options,
            "layers={'num_layers': 1}",
        )
        table = rows(finished / "results/local/6_tables/local.csv")
        assert {line["row"] for line in table} == {"gap-init", "zero-shot"}
        assert (finished / "results/local/report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nmae=x", "error: --config: unknown key 'nmae' (did you mean 'name'?)"),
        ("seeds=first", "error: --config: key 'seeds': input should be a valid list"),
        ("training={'epochs': 'many'}", "error: --config: key 'training.epochs'"),
        ("backbone=blip9", "error: --config: key 'backbone': unknown name 'blip9'"),
        ("datasets={'in-domain': 'koko'}", "key 'datasets.in-domain': unknown name 'koko'"),
        ("experiments=['table99']", "key 'experiments': unknown name 'table99'"),
        ("calibration={'sizes': [99999]}", "found 1200 images in the split 'train'"),
        ("calibration={'size': 4}", "4 pairs has fewer than 10 neighbours"),
        ("backbones={'gemma3': 'b'}", "--config: key 'backbones.gemma3': unknown name 'b'"),
        ("layers={'num_layers': 7}", "key 'layers.num_layers': 7 layers, but"),
        ("experiments=['table2']", "key 'figures': 'figure1b' draws a table with VQAv2_accuracy"),
    ],
)
def test_a_wrong_option_is_one_message(tmp_path: Path, option: str, message: str) -> None:
    output = snakemake(tmp_path, "--dry-run", "--config", option, expect=1)
    assert message in output
    assert "Traceback" not in output
    assert 'File "' not in output


def test_an_unknown_method_names_file_and_row(tmp_path: Path) -> None:
    """Experiments are read from the workflow's own folder, so this one is a copy of it."""
    copy = tmp_path / "copy"
    for name in ("config", "gapinit", "rules", "workflow", "envs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", copy)
    table = copy / "config/experiments/table2.yaml"
    table.write_text(table.read_text().replace("method: pissa", "method: pizza"))
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", "2", "--dry-run"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "table2.yaml: row 'pissa': key 'method': unknown method 'pizza'" in output
    assert "Traceback" not in output


def test_the_paper_is_planned_without_any_file(tmp_path: Path) -> None:
    """Retrieval and every run, in less time than anybody waits for a plan."""
    configuration = ["--configfile", str(ROOT / "config/paper.yaml")]
    started = time.monotonic()
    output = snakemake(tmp_path, "--dry-run", *configuration)
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
    ):
        assert line in output
    trained = [line for line in output.splitlines() if ": Train " in line]
    assert len(trained) == len({line.split(": Train ")[1] for line in trained})
    assert not (tmp_path / "data").exists()


def test_a_backbones_own_recipe_reaches_its_jobs(tmp_path: Path) -> None:
    configuration = ["--configfile", str(ROOT / "config/dynamics.yaml")]
    output = snakemake(tmp_path, "--dry-run", "--printshellcmds", *configuration)
    trainings = [line for line in output.splitlines() if " train --run " in line]
    assert len(trainings) == 8
    for line in trainings:
        assert "--batch-size 1 --gradient-accumulation 19" in line
    for name in ("qwen2.5-vl-7b-instruct", "llama-3.2-11b-vision"):
        assert sum(f"--run {name}/" in line for line in trainings) == 4
        assert f"Layers of {name}" in output


def test_a_folder_that_is_there_is_not_retrieved(tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "my coco")
    configuration = ["--configfile", str(ROOT / "config/paper.yaml")]
    folders = {name: str(data) for name in ("coco", "coco-calibration")}
    options = [
        "--config",
        f"folders={folders}",
        "calibration={'sizes': [20], 'size': 20, 'heldout': 9}",
        "experiments=['table2']",
        "figures=['figure1a']",
    ]
    output = snakemake(tmp_path, "--dry-run", *configuration, *options, expect=1)
    assert "captions_train2017.json" in output, "the calibration file is not in that folder"
    options[1] = f"folders={ {'coco': str(data)} }"
    options += ["mirror=http://127.0.0.1:9/mirror"]
    output = snakemake(tmp_path, "--dry-run", "--printshellcmds", *configuration, *options)
    (prepare,) = [line for line in output.splitlines() if "datasets/coco.yaml" in line
                  and "data prepare" in line]  # fmt: skip
    assert f"--data-root '{data}'" in prepare
    assert "--mirror http://127.0.0.1:9/mirror" in output


def make_photographs(folder: Path) -> Path:
    """Write a small folder in the COCO layout."""
    make_scenes(
        ScenesSettings.model_validate(
            {
                "name": "photographs",
                "generator": "scenes",
                "layout": "coco",
                "domain": "studio",
                "seed": 6,
                "images": {"train": 52, "val": 2, "test": 4},
            }
        ),
        folder,
    )
    return folder


def test_a_local_folder_has_to_be_named(tmp_path: Path) -> None:
    configuration = ["--configfile", str(ROOT / "config/local.yaml")]
    output = snakemake(tmp_path, "--dry-run", *configuration, expect=1)
    assert "say where with --config data_root=FOLDER" in output
    output = snakemake(
        tmp_path, "--dry-run", *configuration, "--config", f"data_root={tmp_path}", expect=1
    )
    assert "no annotation file" in output
    assert "Traceback" not in output


def test_a_missing_image_stops_before_any_job(tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "photographs")
    image = next((data / "images/train2014").iterdir())
    image.unlink()
    configuration = ["--configfile", str(ROOT / "config/local.yaml")]
    output = snakemake(tmp_path, *configuration, "--config", f"data_root={data}", expect=1)
    assert image.name in output
    assert "steps (" not in output
    assert "Traceback" not in output


def test_a_damaged_image_stops_before_anything_expensive(tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "photographs")
    image = next((data / "images/train2014").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    configuration = ["--configfile", str(ROOT / "config/local.yaml"), "--show-failed-logs"]
    output = snakemake(tmp_path, *configuration, "--config", f"data_root={data}", expect=1)
    assert image.name in output
    assert "damaged image" in output
    assert "rule backbone:" not in output
    assert "Pretrain" not in output.replace("Pretraining", "").split("Error in rule")[0]
    assert "Traceback" not in output

"""The workflow end to end on `config/test.yaml`: one run, shared by all tests here."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

from gapinit.artifacts.artifacts import read_json
from gapinit.config.configuration import Config
from gapinit.report.reference import make_reference, outdated

from .workflow_calls import ROOT, TEST, make_photographs, snakemake

TABLES = ("captioning", "transfer", "questions", "dynamics", "backbones")
FIGURES = (
    "figure1a",
    "figure1b",
    "figure1c",
    "figure2",
    "figure3",
    "figure4",
    "figure5",
    "dynamics_loss",
    "dynamics_gradnorm",
)


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(run: Path, dataset: str) -> dict[str, float]:
    """Return a run's scores on a dataset."""
    return dict(json.loads((run / f"{dataset}.scores.json").read_text(encoding="utf-8"))["metrics"])


@pytest.fixture
def finished(grid: Path) -> Path:
    """Return the results of the small grid."""
    return grid / "results/test"


pytestmark = pytest.mark.slow


def test_training_is_repeated_when_its_numbers_change_and_only_then(grid: Path) -> None:
    run = next(grid.glob("results/test/4_train/runs/mini-blip2-test/**/run.json"))
    target = str(run.relative_to(grid))
    for change, trained in (("'checkpoint_steps': 7", False), ("'learning_rate': 5e-3", True)):
        options = ("--dry-run", "--config", f"training={{{change}}}")
        told = snakemake(grid, target, *TEST, *options)
        assert ("Train mini-blip2-test/" in told) == trained, told
        assert trained or "Nothing to be done" in told


def test_every_table_and_figure_is_there(finished: Path) -> None:
    tables = [f"6_tables/test-{name}.{it}" for name in TABLES for it in ("csv", "md", "tex")]
    figures = [f"7_figures/{name}.{it}" for name in FIGURES for it in ("pdf", "png", "svg", "csv")]
    others = ["claims.csv", "claims.md", "6_tables/runs.csv", "6_tables/runs.parquet"]
    for name in [*tables, *figures, *others]:
        assert (finished / name).stat().st_size > 0
    page = (finished / "report.html").read_text(encoding="utf-8")
    # The page links the log and the adapter of each run by relative paths.
    links = set(re.findall(r'href="(?!#)([^"]+)"', page))
    assert len(links) > 20 and all((finished / unquote(link)).exists() for link in links)


def test_it_can_be_kept_as_a_reference(
    grid: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Manifests name images from the folder in which the workflow ran.
    monkeypatch.chdir(grid)
    kept = tmp_path / "reference"
    make_reference(finished, kept, ROOT)
    config = Config.model_validate(read_json(finished / "configuration.json"))
    assert outdated(kept, config, ROOT) == []
    page = (kept / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'href="(?!#)', page)


def test_a_cell_is_the_score_of_its_run(finished: Path) -> None:
    table = rows(finished / "6_tables/test-captioning.csv")
    assert {line["row"] for line in table} >= {"gap-init", "pissa", "all-layers", "zero-shot"}
    for line in table:
        measured = scores(finished / "5_evaluate/runs" / line["runs"], "scenes-test")
        assert float(line["measured"]) == pytest.approx(measured[line["metric"]], abs=1e-9)
    published = {line["row"]: line["published"] for line in table if line["metric"] == "CIDEr"}
    assert float(published["gap-init"]) == 140.59
    assert published["zero-shot"] == ""


def test_questions_are_scored_on_their_benchmarks(finished: Path) -> None:
    table = rows(finished / "6_tables/test-questions.csv")
    where = {
        "VQAv2_accuracy": ("scenes-test-vqa", "accuracy"),
        "OKVQA_accuracy": ("scenes-test-okvqa", "accuracy"),
        "POPE_F1": ("scenes-test-pope", "mean_f1"),
    }
    assert {line["metric"] for line in table} == set(where)
    for line in table:
        dataset, name = where[line["metric"]]
        runs = line["runs"].split(";")
        assert all(run.startswith("mini-blip2-test/scenes-test-vqa/") for run in runs)
        found = [scores(finished / "5_evaluate/runs" / run, dataset)[name] for run in runs]
        assert float(line["measured"]) == pytest.approx(sum(found) / len(found), abs=1e-9)


def test_conversations_are_trained_on(finished: Path) -> None:
    runs = finished / "4_train/runs/mini-blip2-test/scenes-test-instruct/loftq"
    (run,) = runs.rglob("run.json")
    record = json.loads(run.read_text(encoding="utf-8"))
    assert record["factors"]["dataset"] == "scenes-test-instruct"
    assert record["recipe"]["max_tokens"] == 88


def test_trainings_are_measured_without_scores(finished: Path) -> None:
    table = rows(finished / "6_tables/test-dynamics.csv")
    assert {line["row"] for line in table} == {"lora", "loftq"}
    for line in table:
        assert float(line["measured"]) > 0, line["metric"]
        assert not (finished / "5_evaluate/runs" / line["runs"]).exists()
    tidy = rows(finished / "6_tables/runs.csv")
    trainings = [line for line in tidy if line["evaluated"] == "training"]
    assert {line["method"] for line in trainings} == {"lora-kaiming", "loftq"}


def test_another_backbone_is_compared_with_itself(finished: Path) -> None:
    name = "mini-qwen2-vl-test"
    lines = {line["row"]: line for line in rows(finished / "6_tables/test-backbones.csv")}
    lora, gap_init = lines["qwen2-vl-lora"], lines["qwen2-vl-gap-init"]
    assert lora["runs"].startswith(f"{name}/") and gap_init["runs"].startswith(f"{name}/")
    difference = float(lora["measured"]) - float(gap_init["measured"])
    assert float(lora["vs_reference"]) == pytest.approx(difference)
    assert gap_init["vs_reference"] == ""
    assert (finished / f"3_gap/{name}/layers.json").is_file()
    text = (finished / "6_tables/test-backbones.md").read_text(encoding="utf-8")
    assert f"Measured: backbone {name}, fine-tuned" in text


def test_meteor_only_where_a_table_asks_for_it(finished: Path) -> None:
    runs = finished / "5_evaluate/runs"
    transfer = next(runs.rglob("scenes-test-ood.scores.json")).parent
    captioning = next(runs.rglob("scenes-test.scores.json")).parent
    assert "METEOR" in scores(transfer, "scenes-test-ood")
    assert "METEOR" not in scores(captioning, "scenes-test")


def test_later_calls_in_the_same_folder(grid: Path, tmp_path: Path) -> None:
    """A finished grid needs no job; a deleted run is recomputed bit by bit; Snakemake's report."""
    folder = tmp_path / "a copy"
    shutil.copytree(grid, folder, symlinks=True)
    assert "Nothing to be done" in snakemake(folder, *TEST, "--dry-run")

    run = "mini-blip2-test/scenes-test/gap-init/rank1_naive_epochs1/in-domain-24/seed42"
    made = folder / "results/test/4_train/runs" / run
    names = ("adapter/adapter_model.safetensors", "steps.csv")
    before = [(made / name).read_bytes() for name in names]
    shutil.rmtree(made)
    output = snakemake(folder, *TEST, "--", f"results/test/4_train/runs/{run}/run.json")
    assert "1 of 1 steps" in output
    assert [(made / name).read_bytes() for name in names] == before

    archive = tmp_path / "r.zip"
    snakemake(folder, *TEST, "--report", str(archive))
    with zipfile.ZipFile(archive) as opened:
        held = {Path(name).name for name in opened.namelist()}
    for stem in ("test-captioning", "test-backbones"):
        assert {f"{stem}.{suffix}" for suffix in ("csv", "md", "tex")} <= held
    assert {"claims.csv", "runs.csv", "figure1a.svg", "figure5.pdf"} <= held


def test_a_local_folder_goes_through_the_same_chain(grid: Path, tmp_path: Path) -> None:
    """The local configuration reuses the backbone of the grid."""
    folder, data = tmp_path / "a workflow", make_photographs(tmp_path / "my photographs")
    for name in (
        ".snakemake",
        "results/1_backbones/mini-blip2-test",
        "results/1_data/scenes-test-pretraining",
    ):
        shutil.copytree(grid / name, folder / name)
    output = snakemake(
        folder,
        *("--configfile", str(ROOT / "config/local.yaml")),
        *("--config", f"data_root={data}", "backbone=mini-blip2-test"),
        *("gap={'neighbours': 5}", "layers={'num_layers': 1}", "training={'epochs': 1}"),
        *("figures=[]", "--", "results/local/6_tables/local.csv"),
    )
    assert "Pretrain" not in output
    table = rows(folder / "results/local/6_tables/local.csv")
    assert {line["row"] for line in table} == {"gap-init", "zero-shot"}

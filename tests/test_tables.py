"""Tables and the tidy table of runs, from score files with known means."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from gapinit.config.experiments import load_experiment
from gapinit.errors import GapinitError
from gapinit.report.run_lines import arrange_runs
from gapinit.report.sections import arrange_table
from gapinit.tables.formats import latex_escape
from gapinit.tables.records import Measurement, read_runs, read_table, write_csv, write_records
from gapinit.tables.table import tidy_runs

from .score_world import CONTENT, MEANS, World, make_world, read

Lines = dict[tuple[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a world in which everything was scored; tests only read it."""
    made = make_world(tmp_path_factory.mktemp("scored"))
    made.fill(MEANS)
    return made


@pytest.fixture(scope="module")
def lines(world: World) -> Lines:
    """Return the lines of its table, whose files lie at `world.output`."""
    return world.table()


@pytest.fixture(scope="module")
def runs(world: World) -> Path:
    """Return its tidy table of runs."""
    output = world.output.with_name("runs.csv")
    tidy_runs([world.experiment], world.config, world.evaluations, world.runs, output)
    return output


def test_a_cell_is_mean_and_sample_standard_deviation_over_seeds(
    world: World, lines: Lines
) -> None:
    assert list(lines) == [(row, metric) for row in MEANS for metric in ("CIDEr", "Bleu_4")]
    line = lines["lora", "CIDEr"]
    assert float(line["measured"]) == pytest.approx(120)
    assert float(line["std"]) == pytest.approx(1)
    assert line["n_seeds"] == "3" and line["label"] == "[LoRA] 1" and line["table"] == "mine"
    assert line["runs"].split(";") == [run.path for run in world.rows["lora"]]
    assert float(line["interval_low"]) < 120 < float(line["interval_high"])
    assert float(lines["lora", "Bleu_4"]["measured"]) == pytest.approx(30)


def test_the_interval_names_what_it_is_over(lines: Lines) -> None:
    assert lines["lora", "CIDEr"]["interval_over"] == "seeds and images"
    assert lines["lora", "Bleu_4"]["interval_over"] == "seeds"
    assert lines["zero-shot", "CIDEr"]["interval_over"] == "images"
    alone = lines["zero-shot", "Bleu_4"]
    assert alone["interval_over"] == alone["interval_low"] == alone["std"] == ""
    assert alone["n_seeds"] == "1"


def test_published_numbers_stand_beside_measured_ones(lines: Lines) -> None:
    line = lines["lora", "CIDEr"]
    assert float(line["published"]) == 98.08 and line["published_std"] == ""
    assert float(line["difference"]) == pytest.approx(120 - 98.08)
    assert line["note"].endswith("135.37 ± 7.10 (Table 7)")
    assert float(lines["gap", "CIDEr"]["published_std"]) == 1.5
    # Not published for this metric; not published at all.
    for cell in (("lora", "Bleu_4"), ("random-b", "CIDEr")):
        assert lines[cell]["published"] == lines[cell]["difference"] == lines[cell]["note"] == ""


def test_rows_are_compared_with_the_reference_on_the_same_seeds_and_images(lines: Lines) -> None:
    lora = lines["lora", "CIDEr"]
    assert float(lora["vs_reference"]) == pytest.approx(-10)
    # Image effects of size 10 and seed offsets are shared and cancel; noise of size 4 stays.
    assert -13 < float(lora["vs_reference_low"]) < float(lora["vs_reference_high"]) < -7
    assert float(lora["p_value"]) == pytest.approx(1e-4) and lora["p_over"] == "images"
    same = lines["random-b", "CIDEr"]
    assert float(same["vs_reference_low"]) < 0 < float(same["vs_reference_high"])
    assert float(same["p_value"]) > 0.05
    # The untrained backbone is paired with every seed.
    untrained = lines["zero-shot", "CIDEr"]
    assert float(untrained["vs_reference"]) == pytest.approx(-90)
    assert float(untrained["vs_reference_high"]) < -80
    reference = lines["gap", "CIDEr"]
    assert reference["vs_reference"] == reference["p_value"] == reference["p_holm"] == ""


def test_a_corpus_metric_is_tested_over_seeds(lines: Lines) -> None:
    line = lines["lora", "Bleu_4"]
    assert line["p_over"] == "seeds"
    # Three seeds on one side: 2 of the 8 sign flips are as extreme.
    assert float(line["p_value"]) == pytest.approx(0.25)


def test_p_values_are_corrected_over_the_rows_of_a_metric(lines: Lines) -> None:
    raw = {row: float(lines[row, "CIDEr"]["p_value"]) for row in ("lora", "random-b", "zero-shot")}
    holm = {row: float(lines[row, "CIDEr"]["p_holm"]) for row in raw}
    assert holm["lora"] == holm["zero-shot"] == pytest.approx(3e-4)
    assert holm["random-b"] == raw["random-b"]
    assert float(lines["lora", "Bleu_4"]["p_holm"]) == pytest.approx(0.75)


@pytest.fixture
def two_backbones(tmp_path: Path) -> World:
    """Return a world of two backbones, each with a reference of its own."""
    both = {"backbone": ["large", "small"], "reference": "{backbone}-gap"}
    made = make_world(
        tmp_path,
        backbones={"large": "mini-large", "small": "mini-small"},
        reference=None,
        metrics=["CIDEr"],
        rows=[
            {"id": "{backbone}-lora", "label": "LoRA", "method": "lora-gaussian", **both},
            {"id": "{backbone}-gap", "label": "Gap on {backbone}", "method": "gap-init", **both},
        ],
    )
    made.fill({"large-lora": 140, "large-gap": 142, "small-lora": 90, "small-gap": 95})
    return made


def test_rows_of_two_backbones_are_compared_each_with_its_own(two_backbones: World) -> None:
    world = two_backbones
    lines = world.table()
    assert float(lines["large-lora", "CIDEr"]["vs_reference"]) == pytest.approx(-2)
    assert float(lines["small-lora", "CIDEr"]["vs_reference"]) == pytest.approx(-5)
    for row in ("large-gap", "small-gap"):
        assert lines[row, "CIDEr"]["vs_reference"] == lines[row, "CIDEr"]["p_holm"] == ""
    text = world.output.with_suffix(".md").read_text(encoding="utf-8")
    assert "Measured: backbones mini-large and mini-small, fine-tuned on scenes" in text
    assert "each row's own reference ('Gap on large' or 'Gap on small')" in text
    # The report marks every reference and names the other backbone.
    (metric,) = arrange_table(read_table(world.output), load_experiment(world.experiment)).metrics
    assert metric.references == ("large-gap", "small-gap")
    output = world.output.with_name("runs.csv")
    tidy_runs([world.experiment], world.config, world.evaluations, world.runs, output)
    run_lines, _ = arrange_runs(read_runs(output), world.runs, "CIDEr", "mini-large")
    labels = {line.label for line in run_lines if line.run.method == "gap-init"}
    assert labels == {"Gap-Init", "Gap-Init on mini-small"}


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    world = make_world(tmp_path, seeds=[123], evaluate="ood", reference=None)
    world.fill(MEANS, dataset="scenes-ood")
    lines = world.table()
    line = lines["lora", "CIDEr"]
    assert line["std"] == "" and line["interval_over"] == "images" and line["n_seeds"] == "1"
    # A table without a reference compares nothing; one of transfer reads the other dataset.
    assert {line["vs_reference"] for line in lines.values()} == {""}
    assert "scored on 60 images of scenes-ood" in world.output.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("column", "found", "expected"),
    [
        ("published", "many", "a number"),
        ("measured", "", "a number"),
        ("std", "inf", "a finite number"),
        ("n_seeds", "1.5", "a whole number"),
        ("runs", "some\0where", "the path of a run"),
    ],
)
def test_a_wrong_entry_of_a_table_is_named(
    world: World, lines: Lines, tmp_path: Path, column: str, found: str, expected: str
) -> None:
    entries = [dict(line) for line in lines.values()]
    entries[1][column] = found
    path = tmp_path / "mine.csv"
    write_csv(path, entries[0], (line.values() for line in entries))
    with pytest.raises(GapinitError) as error:
        read_table(path)
    assert f"{path}: line 3, column '{column}': expected {expected}, found" in str(error.value)


def test_tables_are_read_as_they_were_written(
    world: World, lines: Lines, runs: Path, tmp_path: Path
) -> None:
    gap = next(line for line in read_table(world.output) if line.row == "gap")
    assert gap.measured == pytest.approx(130) and gap.published == 140.59
    assert gap.runs == tuple(run.path for run in world.rows["gap"])
    still = Measurement(**gap.model_dump() | {"std": 0.0, "p_value": None})
    write_records(tmp_path / "still.csv", Measurement, [still])
    (again,) = read_table(tmp_path / "still.csv")
    assert again == still and again.std == 0 and again.p_value is None
    assert {line.run for line in read_runs(runs)} == {r for rs in world.rows.values() for r in rs}


def test_markdown_has_one_line_a_row_and_says_the_scale(world: World, lines: Lines) -> None:
    text = world.output.with_suffix(".md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(MEANS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert "120.00 ± 1.00 [" in text and "98.08" in text and "−10.00 [" in text
    assert "backbone mini-blip2, fine-tuned on scenes" in text and "full scale" in text
    assert "135.37 ± 7.10 (Table 7)" in text and "A note of 5 % & more." in text
    assert "There are 3 seeds: the true standard deviation lies between" in text
    assert "corrected by Holm's method over the rows, for each metric on its own" in text


def test_latex_is_whole_and_escaped(world: World, lines: Lines) -> None:
    text = world.output.with_suffix(".tex").read_text(encoding="utf-8")
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    for special in ("%", "#", "_", "~", "|", "±", "−", "<"):
        assert special not in bare, special
    for command in ("begin{table*}", "end{tabular}", "toprule", "midrule", "bottomrule"):
        assert text.count("\\" + command) == 1
    assert r"\begin{tabular}{lrrrrrr}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(MEANS)
    for line in body:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 6
        # A bracket after a line break would be read as its height.
        assert not line.startswith("[")
    assert r"Scores \& costs at 100\% of a\_table" in text


def test_what_latex_reads_specially_is_escaped() -> None:
    assert latex_escape(r"a_b & 5% \x{} [1] ±2") == (
        r"a\_b \& 5\% \textbackslash{}x\{\} {[}1{]} $\pm$2"
    )


def test_a_misspelt_published_row_is_an_error(tmp_path: Path) -> None:
    rows = [dict(row) for row in CONTENT["rows"]]
    rows[0]["published"] = "lroa"
    world = make_world(tmp_path, rows=rows)
    with pytest.raises(GapinitError, match=r"mine.yaml: row 'lora': .* no row 'lroa' at 'Table 2'"):
        world.table()


def test_the_tidy_table_has_a_line_for_each_run_and_metric(world: World) -> None:
    second = world.experiment.with_name("second.yaml")
    # A row that repeats a run under another name does not name its table twice.
    again = CONTENT["rows"][1] | {"id": "again"}
    second.write_text(yaml.safe_dump(CONTENT | {"rows": [*CONTENT["rows"][:2], again]}))
    output = world.output.with_name("runs.csv")
    paths = [world.experiment, second]
    tidy_runs(paths, world.config, world.evaluations, world.runs, output)
    lines = read(output)
    assert len(lines) == (3 * 3 + 1) * 2
    by_method = {line["method"]: line for line in lines if line["metric"] == "CIDEr"}
    assert by_method["gap-init"]["tables"] == "mine;second"
    assert by_method["random-b"]["tables"] == "mine"
    gap = by_method["gap-init"]
    assert (gap["rank"], gap["seed"], gap["calibration_size"]) == ("1", "2024", "256")
    assert (gap["first_grad_norm"], gap["noise_cosine"]) == ("0.5", "")
    assert gap["evaluated"] == "scenes" and float(gap["value"]) == pytest.approx(131)
    assert by_method["zero-shot"]["final_loss"] == by_method["zero-shot"]["seed"] == ""
    costs = read(output.with_name("costs.csv"))
    assert [line["run"] for line in costs] == list(
        dict.fromkeys(line["run"] for line in lines if line["method"] != "zero-shot")
    )
    assert {(line["seconds"], line["peak_memory_mb"]) for line in costs} == {("12.5", "800.5")}


def test_the_tidy_table_is_the_same_in_parquet_with_types(runs: Path) -> None:
    frame = pd.read_parquet(runs.with_suffix(".parquet"))
    written = pd.read_csv(runs, keep_default_na=False, dtype=str)
    assert list(frame.columns) == list(written.columns)
    for column in frame.columns:
        typed = written[column].replace("", None).astype(frame[column].dtype)
        pd.testing.assert_series_equal(frame[column], typed)
    assert frame["seed"].dropna().dtype.kind in "if" and frame["value"].dtype == "float64"

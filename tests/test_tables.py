"""Tables, the tidy table of runs, and verdicts on claims, from score files with known means."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from gapinit.claims import CLAIM_COLUMNS, check_claims
from gapinit.config import Config
from gapinit.errors import GapinitError
from gapinit.runs import Run, load_experiment, table_rows
from gapinit.statistics import std_ratio_interval
from gapinit.table_formats import latex_escape
from gapinit.tables import TABLE_COLUMNS, make_table, tidy_runs

SEEDS = [42, 123, 2024]
OFFSETS = dict(zip(SEEDS, [-1.0, 0.0, 1.0], strict=True))
NUM_IMAGES = 60


class World:
    """A folder of synthetic score files and run records for one experiment."""

    def __init__(self, folder: Path, config: Config, content: dict[str, Any]) -> None:
        self.config = config
        self.experiment = folder / "config" / "mine.yaml"
        self.evaluations, self.runs = folder / "5_evaluate", folder / "4_train"
        self.published = folder / "published"
        self.output = folder / "6_tables" / "mine.csv"
        self.experiment.parent.mkdir(parents=True)
        self.experiment.write_text(yaml.safe_dump(content))
        self.published.mkdir()
        (self.published / "gap-init.csv").write_text(
            "place,row,metric,value,std,printed,configuration\n"
            "Table 2,lora,CIDEr,98.08,,98.08,c/lora\n"
            "Table 2,gap,CIDEr,140.59,1.5,140.59 ± 1.5,c/gap\n"
            "Table 7,lora,CIDEr,135.37,7.1,135.37 ± 7.10,c/lora\n"
        )
        self.rows = {
            row.id: row.runs for row in table_rows(load_experiment(self.experiment), config, "test")
        }

    def score(self, row: str, run: Run, mean: float, dataset: str = "scenes") -> Path:
        """Write scores whose CIDEr is exactly `mean`, with the same image effects in every run."""
        rng = np.random.default_rng([run.seed or 0, *row.encode()])
        images = np.random.default_rng(0).normal(0, 10, NUM_IMAGES)
        cider = images + rng.normal(0, 4, NUM_IMAGES)
        cider += mean - cider.mean()
        samples = [
            {"image_id": i, "caption": "a \\ caption", "CIDEr": value, "Bleu_4": 1.0}
            for i, value in enumerate(cider)
        ]
        # The order of a file means nothing: pairs are found by image.
        order = rng.permutation(NUM_IMAGES)
        path = self.evaluations / run.path / f"{dataset}.scores.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {"CIDEr": float(cider.mean()), "Bleu_4": mean / 4}
        content = {"metrics": metrics, "per_sample": [samples[i] for i in order]}
        path.write_text(json.dumps(content))
        return path

    def train(self, run: Run) -> None:
        """Write the record of a trained run."""
        if not run.trained:
            return
        path = self.runs / run.path / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"factors": run.factors, "first_grad_norm": 0.5, "final_loss": 1.25}
        record |= {"noise_cosine": None, "seconds": 12.5, "peak_memory_mb": 800}
        path.write_text(json.dumps(record | {"trainable_parameters": 1234}))

    def fill(self, means: dict[str, float], dataset: str = "scenes") -> None:
        """Write everything: a row's seeds score its mean plus their offsets."""
        for row, runs in self.rows.items():
            for run in runs:
                offset = 0.0 if run.seed is None else OFFSETS[run.seed]
                self.score(row, run, means[row] + offset, dataset)
                self.train(run)

    def table(self, **changes: Any) -> dict[tuple[str, str], dict[str, str]]:
        """Make the table; return its lines by row and metric."""
        make_table(
            self.experiment,
            self.config,
            self.evaluations,
            self.runs,
            self.published,
            self.output,
            **changes,
        )
        return {(line["row"], line["metric"]): line for line in read(self.output)}

    def claims(self) -> list[dict[str, str]]:
        """Check the claims; return the lines."""
        output = self.output.with_name("claims.csv")
        check_claims([self.experiment], self.config, self.evaluations, output)
        return read(output)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def claim(better: str, worse: str, **changes: Any) -> dict[str, Any]:
    return {"text": "better", "metric": "CIDEr", "better": better, "worse": worse} | changes


CONTENT: dict[str, Any] = {
    "title": "Scores & costs at 100% of a_table",
    "paper": "gap-init",
    "place": "Table 2",
    "metrics": ["CIDEr", "Bleu_4"],
    "reference": "gap",
    "rows": [
        {"id": "lora", "label": "[LoRA] {rank}", "method": "lora-gaussian", "published": "lora"},
        {"id": "gap", "label": "Gap_Init #1 | ~best", "method": "gap-init", "published": "gap"},
        {"id": "random-b", "label": "Random B", "method": "random-b"},
        {"id": "zero-shot", "label": "Zero-shot", "method": "zero-shot"},
    ],
    "note": "A note of 5 % & more.",
}
MEANS = {"lora": 120.0, "gap": 130.0, "random-b": 129.9, "zero-shot": 40.0}


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """Return a maker of worlds; keyword arguments change the experiment."""

    def make(seeds: list[int] = SEEDS, **changes: Any) -> World:
        config = Config.model_validate(
            {
                "name": "test",
                "backbone": "mini-blip2",
                "datasets": {"in-domain": "scenes", "ood": "scenes-ood"},
                "seeds": seeds,
                "calibration": {},
                "layers": {"num_layers": 2},
                "experiments": ["mine"],
            }
        )
        return World(tmp_path / "a world", config, CONTENT | changes)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.fill(MEANS)
    return made


def test_a_cell_is_mean_and_sample_standard_deviation_over_seeds(world: World) -> None:
    lines = world.table()
    assert list(lines) == [(row, metric) for row in MEANS for metric in ("CIDEr", "Bleu_4")]
    line = lines["lora", "CIDEr"]
    assert float(line["measured"]) == pytest.approx(120)
    assert float(line["std"]) == pytest.approx(1)
    assert line["n_seeds"] == "3" and line["label"] == "[LoRA] 1" and line["table"] == "mine"
    assert line["runs"].split(";") == [run.path for run in world.rows["lora"]]
    assert float(line["interval_low"]) < 120 < float(line["interval_high"])
    assert float(lines["lora", "Bleu_4"]["measured"]) == pytest.approx(30)


def test_the_interval_names_what_it_is_over(world: World) -> None:
    lines = world.table()
    assert lines["lora", "CIDEr"]["interval_over"] == "seeds and images"
    assert lines["lora", "Bleu_4"]["interval_over"] == "seeds"
    assert lines["zero-shot", "CIDEr"]["interval_over"] == "images"
    alone = lines["zero-shot", "Bleu_4"]
    assert alone["interval_over"] == alone["interval_low"] == alone["std"] == ""
    assert alone["n_seeds"] == "1"


def test_published_numbers_stand_beside_measured_ones(world: World) -> None:
    lines = world.table()
    line = lines["lora", "CIDEr"]
    assert float(line["published"]) == 98.08 and line["published_std"] == ""
    assert float(line["difference"]) == pytest.approx(120 - 98.08)
    assert line["note"].endswith("135.37 ± 7.10 (Table 7)")
    assert float(lines["gap", "CIDEr"]["published_std"]) == 1.5
    # Not published for this metric; not published at all.
    for cell in (("lora", "Bleu_4"), ("random-b", "CIDEr")):
        assert lines[cell]["published"] == lines[cell]["difference"] == lines[cell]["note"] == ""


def test_rows_are_compared_with_the_reference_on_the_same_seeds_and_images(world: World) -> None:
    lines = world.table()
    lora = lines["lora", "CIDEr"]
    assert float(lora["vs_reference"]) == pytest.approx(-10)
    # Image effects of size 10 and seed offsets are shared and cancel; noise of size 4 stays.
    assert -13 < float(lora["vs_reference_low"]) < float(lora["vs_reference_high"]) < -7
    assert float(lora["p_value"]) == pytest.approx(1e-4) and lora["p_over"] == "images"
    same = lines["random-b", "CIDEr"]
    assert float(same["vs_reference_low"]) < 0 < float(same["vs_reference_high"])
    assert float(same["p_value"]) > 0.05
    reference = lines["gap", "CIDEr"]
    assert reference["vs_reference"] == reference["p_value"] == reference["p_holm"] == ""


def test_the_untrained_backbone_is_paired_with_every_seed(world: World) -> None:
    line = world.table()["zero-shot", "CIDEr"]
    assert float(line["vs_reference"]) == pytest.approx(-90)
    assert float(line["vs_reference_high"]) < -80


def test_a_corpus_metric_is_tested_over_seeds(world: World) -> None:
    line = world.table()["lora", "Bleu_4"]
    assert line["p_over"] == "seeds"
    # Three seeds on one side: 2 of the 8 sign flips are as extreme.
    assert float(line["p_value"]) == pytest.approx(0.25)


def test_p_values_are_corrected_over_the_rows_of_a_metric(world: World) -> None:
    lines = world.table()
    raw = {row: float(lines[row, "CIDEr"]["p_value"]) for row in ("lora", "random-b", "zero-shot")}
    holm = {row: float(lines[row, "CIDEr"]["p_holm"]) for row in raw}
    assert holm["lora"] == holm["zero-shot"] == pytest.approx(3e-4)
    assert holm["random-b"] == raw["random-b"]
    assert float(lines["lora", "Bleu_4"]["p_holm"]) == pytest.approx(0.75)


def test_the_paired_p_value_is_scipys(world: World) -> None:
    per_image = []
    for row in ("random-b", "gap"):
        scores = []
        for run in world.rows[row]:
            path = world.evaluations / run.path / "scenes.scores.json"
            samples = json.loads(path.read_text())["per_sample"]
            scores.append({sample["image_id"]: sample["CIDEr"] for sample in samples})
        per_image.append([np.mean([s[i] for s in scores]) for i in range(NUM_IMAGES)])
    theirs = stats.permutation_test(
        (np.subtract(*per_image),), np.mean, permutation_type="samples", vectorized=True, rng=0
    ).pvalue
    ours = float(world.table()["random-b", "CIDEr"]["p_value"])
    assert ours == pytest.approx(theirs, abs=0.02)


def test_another_reference_may_be_asked_for(world: World) -> None:
    lines = world.table(reference="lora")
    assert float(lines["gap", "CIDEr"]["vs_reference"]) == pytest.approx(10)
    with pytest.raises(GapinitError, match=r"mine.yaml: key 'reference' names row 'pissa'"):
        world.table(reference="pissa")


def test_a_table_without_reference_compares_nothing(make_world: Callable[..., World]) -> None:
    world = make_world(reference=None)
    world.fill(MEANS)
    assert all(line["vs_reference"] == "" for line in world.table().values())


def test_one_seed_has_no_standard_deviation(make_world: Callable[..., World]) -> None:
    world = make_world(seeds=[123])
    world.fill(MEANS)
    line = world.table()["lora", "CIDEr"]
    assert line["std"] == "" and line["interval_over"] == "images" and line["n_seeds"] == "1"
    assert world.table()["lora", "Bleu_4"]["p_value"] == ""


def test_the_ood_table_reads_the_scores_of_the_other_dataset(
    make_world: Callable[..., World],
) -> None:
    world = make_world(evaluate="ood")
    world.fill(MEANS, dataset="scenes-ood")
    assert float(world.table()["gap", "CIDEr"]["measured"]) == pytest.approx(130)
    text = world.output.with_suffix(".md").read_text()
    assert "scored on 60 images of scenes-ood" in text


def test_the_same_inputs_make_the_same_bytes(world: World) -> None:
    suffixes = (".csv", ".md", ".tex")
    world.table()
    first = [world.output.with_suffix(suffix).read_bytes() for suffix in suffixes]
    world.table()
    assert [world.output.with_suffix(suffix).read_bytes() for suffix in suffixes] == first


def test_columns_are_those_that_the_report_reads(world: World) -> None:
    from gapinit.results import CLAIM_COLUMNS as CLAIMS_READ
    from gapinit.results import MEASUREMENT_COLUMNS, RUN_COLUMNS, read_runs, read_table

    assert set(MEASUREMENT_COLUMNS) <= set(TABLE_COLUMNS)
    assert set(CLAIMS_READ) <= set(CLAIM_COLUMNS)
    world.table()
    gap = next(line for line in read_table(world.output) if line.row == "gap")
    assert gap.measured == pytest.approx(130) and gap.published == 140.59
    output = world.output.with_name("runs.csv")
    tidy_runs([world.experiment], world.config, world.evaluations, world.runs, output)
    assert set(RUN_COLUMNS) <= set(read(output)[0])
    assert {line.run for line in read_runs(output)} == {r for rs in world.rows.values() for r in rs}


def test_markdown_has_one_line_a_row_and_says_the_scale(world: World) -> None:
    world.table()
    text = world.output.with_suffix(".md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(MEANS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert "120.00 ± 1.00 [" in text and "98.08" in text and "−10.00 [" in text
    assert "backbone mini-blip2, fine-tuned on scenes" in text and "full scale" in text
    assert "135.37 ± 7.10 (Table 7)" in text and "A note of 5 % & more." in text


def test_latex_is_whole_and_escaped(world: World) -> None:
    world.table()
    text = world.output.with_suffix(".tex").read_text(encoding="utf-8")
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    for special in ("%", "#", "_", "~", "|", "±", "−", "<"):
        assert special not in bare, special
    for environment in ("table*", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == 1
        assert text.count(rf"\end{{{environment}}}") == 1
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count("\\" + rule) == 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None and columns[1] == "lrrrrrr"
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


def test_a_missing_score_names_the_file_the_row_and_what_makes_it(world: World) -> None:
    path = world.evaluations / world.rows["gap"][1].path / "scenes.scores.json"
    path.unlink()
    with pytest.raises(GapinitError) as error:
        world.table()
    for part in (str(path), "table 'mine', row 'gap'", "5_evaluate.smk", "snakemake"):
        assert part in str(error.value)
    assert not world.output.exists()


def damage_images(content: dict[str, Any]) -> None:
    content["per_sample"][0]["image_id"] = 999


def damage_twice(content: dict[str, Any]) -> None:
    content["per_sample"][0]["image_id"] = content["per_sample"][1]["image_id"]


def damage_mean(content: dict[str, Any]) -> None:
    content["metrics"]["CIDEr"] += 0.01


def damage_metric(content: dict[str, Any]) -> None:
    del content["metrics"]["Bleu_4"]


def damage_shape(content: dict[str, Any]) -> None:
    content["per_sample"] = {"CIDEr": 1}


def damage_finite(content: dict[str, Any]) -> None:
    content["metrics"]["Bleu_4"] = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_images, "expected the 60 images of"),
        (damage_twice, "60 entries for 59 images"),
        (damage_mean, "but the mean over 'per_sample' is"),
        (damage_metric, "metric 'Bleu_4' is missing, found: CIDEr"),
        (damage_shape, "not a score file"),
        (damage_finite, "expected a finite number"),
    ],
)
def test_a_damaged_score_file_is_an_error_that_names_it(
    world: World, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = world.evaluations / world.rows["gap"][1].path / "scenes.scores.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(GapinitError) as error:
        world.table()
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_the_record_of_another_run_is_refused(world: World) -> None:
    one, two = (world.runs / run.path / "run.json" for run in world.rows["gap"][:2])
    one.write_text(two.read_text())
    with pytest.raises(GapinitError, match="expected the record of the run") as error:
        world.table()
    assert str(error.value).startswith(str(one))
    one.unlink()
    with pytest.raises(GapinitError, match=r"4_train\.smk"):
        world.table()


def test_a_misspelt_published_row_is_an_error(make_world: Callable[..., World]) -> None:
    rows = [dict(row) for row in CONTENT["rows"]]
    rows[0]["published"] = "lroa"
    world = make_world(rows=rows)
    with pytest.raises(GapinitError, match=r"mine.yaml: row 'lora': .* no row 'lroa' at 'Table 2'"):
        world.table()


def test_the_tidy_table_has_a_line_for_each_run_and_metric(world: World) -> None:
    second = world.experiment.with_name("second.yaml")
    second.write_text(yaml.safe_dump(CONTENT | {"rows": CONTENT["rows"][:2]}))
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
    assert (gap["seconds"], gap["peak_memory_mb"], gap["noise_cosine"]) == ("12.5", "800", "")
    assert gap["evaluated"] == "scenes" and float(gap["value"]) == pytest.approx(131)
    assert by_method["zero-shot"]["seconds"] == by_method["zero-shot"]["seed"] == ""


def test_claims_have_three_verdicts(make_world: Callable[..., World]) -> None:
    claims = [
        claim("gap", "lora"),
        claim("lora", "gap"),
        claim("gap", "random-b"),
        claim("gap", "lora", metric="Bleu_4"),
        claim("random-b", "gap", margin=5),
        claim("lora", "gap", margin=5),
    ]
    world = make_world(claims=claims)
    world.fill(MEANS)
    lines = world.claims()
    assert [line["verdict"] for line in lines] == [
        "holds",
        "does not hold",
        "undecided",
        "holds",
        "holds",
        "does not hold",
    ]
    assert float(lines[0]["difference"]) == pytest.approx(10)
    assert float(lines[0]["low"]) < 10 < float(lines[0]["high"])
    assert lines[0]["n"] == "3 seeds, 60 images"
    assert lines[0]["interval_over"] == "seeds and images"
    assert lines[3]["interval_over"] == "seeds"


def test_a_claim_about_stability_is_tested_on_the_ratio(make_world: Callable[..., World]) -> None:
    claims = [
        claim("gap", "lora", statistic="std"),
        claim("lora", "gap", statistic="std"),
        claim("random-b", "lora", statistic="std"),
        claim("zero-shot", "lora", statistic="std"),
    ]
    world = make_world(claims=claims)
    world.fill(MEANS)
    spread = {"gap": 0.01, "lora": 5.0, "random-b": 4.0}
    for row, size in spread.items():
        for run in world.rows[row]:
            assert run.seed is not None
            world.score(row, run, MEANS[row] + size * OFFSETS[run.seed])
    lines = world.claims()
    verdicts = [line["verdict"] for line in lines]
    assert verdicts == ["holds", "does not hold", "undecided", "undecided"]
    assert float(lines[0]["difference"]) == pytest.approx(0.01 / 5)
    expected = std_ratio_interval([-0.01, 0, 0.01], [-5, 0, 5])
    assert expected is not None
    assert float(lines[0]["high"]) == pytest.approx(expected[1].high)
    assert lines[3]["difference"] == lines[3]["low"] == ""


def test_no_claims_is_a_legal_answer(world: World) -> None:
    assert world.claims() == []


def test_tables_and_claims_never_import_torch() -> None:
    code = (
        "import sys, gapinit.tables, gapinit.claims;"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'scipy', 'h5py'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_table_of_full_size_takes_seconds(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.NUM_IMAGES", 2000)
    world = make_world()
    world.fill(MEANS)
    start = time.process_time()
    world.table()
    # About one second on a quiet core; the bound leaves room for slow machines.
    assert time.process_time() - start < 10

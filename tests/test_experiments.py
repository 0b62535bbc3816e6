"""The experiment files of the repository: the paper's rows, shared runs, claims in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gapinit.config.configuration import Config, load_config
from gapinit.config.experiments import Experiment, load_experiment, table_rows
from gapinit.config.runs import Run, TableRow
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.tables.published import read_published

TABLES = tuple(f"table{number}" for number in range(2, 13))
EXTRA = ("controls", "baselines")
SEEDS = [42, 123, 2024]

MINIMAL = {
    "name": "test",
    "backbone": "mini-blip2",
    "backbones": {
        "qwen2-vl": "mini-qwen2-vl",
        "gemma3": "mini-gemma3",
        "qwen2.5-vl": "qwen2.5-vl-7b-instruct",
        "llama-3.2-vision": "llama-3.2-11b-vision",
    },
    "datasets": {
        "in-domain": "scenes",
        "ood": "scenes-ood",
        "vqa": "scenes-vqa",
        "instruct": "scenes-instruct",
    },
    "seeds": SEEDS,
    "calibration": {"size": 256},
    "layers": {"num_layers": 6},
    "experiments": ["table2"],
}

Loaded = dict[str, tuple[Experiment, list[TableRow]]]


def load(repository: Path, names: tuple[str, ...]) -> Loaded:
    """Return tables with their rows multiplied out, for the paper's calibration size."""
    config = Config.model_validate(MINIMAL | {"experiments": list(names)})
    paths = {name: repository / "config" / "experiments" / f"{name}.yaml" for name in names}
    loaded = {name: load_experiment(path) for name, path in paths.items()}
    return {
        name: (experiment, table_rows(experiment, config, str(paths[name])))
        for name, experiment in loaded.items()
    }


@pytest.fixture(scope="module")
def tables(repository: Path) -> Loaded:
    return load(repository, TABLES)


def runs(tables: Loaded, table: str, row: str) -> tuple[Run, ...]:
    return next(found.runs for found in tables[table][1] if found.id == row)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_exactly_the_rows_and_metrics_that_the_paper_prints(
    tables: Loaded, repository: Path, name: str
) -> None:
    experiment, rows = tables[name]
    assert experiment.place == f"Table {name.removeprefix('table')}"
    assert experiment.claims and experiment.note and all(row.reference for row in rows)
    published = read_published(repository / "config" / "published" / f"{experiment.paper}.csv")
    cells = [number for number in published if number.place == experiment.place]
    compared = [row.published for row in rows if row.published is not None]
    # In the paper's order; noise stands there twice, once a scale.
    assert list(dict.fromkeys(compared)) == list(dict.fromkeys(cell.row for cell in cells))
    measurable = {cell.metric for cell in cells} - {"CIDEr_gain"}
    # Accuracy and the share of yes say what an F1 on POPE is worth; the paper prints neither.
    assert set(experiment.metrics) - {"POPE_accuracy", "POPE_yes_rate"} == measurable


def test_runs_that_tables_share_are_the_same_runs(tables: Loaded) -> None:
    same = {
        ("table2", "gap-init"): "table3/gap-init table5/naive-gap-init table6/gap-init "
        "table9/size-256 table10/in-domain table11/noise-0",
        ("table2", "lora-rank1"): "table3/lora-rank1 table5/naive-lora",
        ("table2", "zero-shot"): "table3/zero-shot",
        ("table8", "qwen2-vl-lora-rank1"): "table12/qwen2-vl-lora-rank1",
        ("table8", "qwen2-vl-gap-init"): "table12/qwen2-vl-gap-init",
        ("table8", "gemma3-lora-rank1"): "table12/gemma3-1-epoch-lora-rank1",
        ("table8", "gemma3-gap-init"): "table12/gemma3-1-epoch-gap-init",
    }
    for first, others in same.items():
        for other in others.split():
            assert runs(tables, *other.split("/")) == runs(tables, *first), other
    for row in ("gap-init", "lora-rank1"):
        assert set(runs(tables, "table2", row)) < set(runs(tables, "table7", row))


def test_the_whole_grid_is_as_small_as_sharing_makes_it(tables: Loaded) -> None:
    """Table 2 makes 6 trained rows x 3 seeds and one untrained; the others add what is new."""
    new = [19, 0, 16, 6, 6, 4, 4, 9, 6, 18, 5]
    seen: set[Run] = set()
    for name, count in zip(TABLES, new, strict=True):
        rows = tables[name][1]
        found = {run for row in rows for run in row.runs}
        assert len(found) == sum(len(row.runs) for row in rows), "rows of a table are different"
        assert len(found - seen) == count, name
        seeds = {"table7": [42, 123, 2024, 999, 7], "table8": [42], "table12": [42]}
        for row in rows:
            expected = seeds.get(name, SEEDS) if row.runs[0].trained else [None]
            assert [run.seed for run in row.runs] == expected
        seen |= found


def test_every_claim_agrees_with_the_numbers_that_the_paper_prints(
    tables: Loaded, repository: Path
) -> None:
    """A claim turned around by mistake would contradict the table that it was taken from."""
    published = read_published(repository / "config" / "published" / "gap-init.csv")
    cells = {(cell.place, cell.row, cell.metric): cell for cell in published}
    for experiment, rows in tables.values():
        names = {row.id: row.published for row in rows}
        for claim in experiment.claims:
            statement = claim.statement
            better, worse = (
                cells[experiment.place, names[row.id], statement.metric]
                for row in claim.rows(rows, "test")
            )
            if statement.statistic == "std":
                assert better.std is not None and worse.std is not None
                assert better.std < worse.std
            else:
                assert better.value > worse.value - statement.margin, claim


def test_nothing_compares_two_backbones_or_training_budgets(repository: Path) -> None:
    names = sorted(path.stem for path in (repository / "config" / "experiments").glob("*.yaml"))
    for experiment, rows in load(repository, tuple(names)).values():
        setting = {row.id: {(run.backbone, run.epochs) for run in row.runs} for row in rows}
        for row in rows:
            trained = all(run.trained for run in row.runs)
            if row.reference is not None and trained:
                assert setting[row.id] == setting[row.reference], row.id
        for claim in experiment.claims:
            better, worse = (setting[row.id] for row in claim.rows(rows, "test"))
            assert {name for name, _ in better} == {name for name, _ in worse}, claim


def test_the_dynamics_study_has_the_same_rows_on_both_of_its_backbones(repository: Path) -> None:
    ((experiment, rows),) = load(repository, ("dynamics-study",)).values()
    factors: dict[str, list[tuple[str, int | None, str | None]]] = {}
    for row in rows:
        (run,) = {replace(run, seed=None) for run in row.runs}
        factors.setdefault(run.backbone, []).append((run.method, run.rank, run.layers))
    qwen, llama = factors.values()
    assert qwen == llama
    assert qwen == [(name, 8, "all") for name in ("lora-kaiming", "pissa-16", "eva", "loftq")]
    published = read_published(repository / "config" / "published" / "vlm-lora-dynamics.csv")
    models = {number.row: number.configuration.split("/")[0] for number in published}
    values = {(number.row, number.metric): number.value for number in published}
    for row in rows:
        if row.published is not None:
            assert row.runs[0].backbone.startswith(models[row.published])
    names = {row.id: row.published for row in rows}
    for claim in experiment.claims:
        better, worse = (
            values.get((names[row.id] or "", claim.statement.metric))
            for row in claim.rows(rows, "test")
        )
        assert better is None or worse is None or better > worse, claim


def test_full_scale_configurations_have_the_papers_tables_and_batch_sizes(
    repository: Path,
) -> None:
    folder = repository / "config"
    paper, study = (read_yaml(folder / f"{name}.yaml") for name in ("paper", "dynamics"))
    assert paper["experiments"] == [*TABLES, "controls"]
    for content, samples in ((paper, 64), (study, 19)):
        config = load_config(read_yaml(folder / "default.yaml") | content, folder, "test")
        for name in {config.backbone, *config.backbones.values()}:
            training = config.training_of(name)
            assert training.batch_size * training.gradient_accumulation == samples, name


def test_controls_and_baselines_stand_beside_the_papers_gap_init(
    tables: Loaded, repository: Path
) -> None:
    gap_init = runs(tables, "table2", "gap-init")
    for name, (experiment, rows) in load(repository, EXTRA).items():
        assert experiment.reference == "gap-init" and experiment.note, name
        assert all(row.published is None for row in rows)
        found = [row.runs for row in rows]
        assert found[0] == gap_init
        for row in found:
            assert [run.seed for run in row] == SEEDS
        ranks = {run.method: run.rank for row in found for run in row}
        assert all(rank == (2 if method == "orthogonal" else 1) for method, rank in ranks.items())
        assert len(ranks) == len(rows) == {"controls": 12, "baselines": 8}[name]


def test_a_rank_that_a_method_does_not_have_is_told_at_once(
    repository: Path, tmp_path: Path
) -> None:
    text = (repository / "config" / "experiments" / "baselines.yaml").read_text(encoding="utf-8")
    path = tmp_path / "odd.yaml"
    path.write_text(text.replace("rank: 2", "rank: [2, 3]"), encoding="utf-8")
    message = r"odd.yaml: row 'orthogonal': key 'rank': .*even rank, found 3"
    with pytest.raises(GapinitError, match=message):
        load_experiment(path)

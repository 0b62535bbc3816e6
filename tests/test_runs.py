"""Runs and their paths, and how the rows of an experiment become runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gapinit.config.configuration import Config
from gapinit.config.experiments import load_experiment, table_rows
from gapinit.config.methods import METHODS
from gapinit.config.runs import Run
from gapinit.errors import GapinitError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
SMALL = st.integers(1, 10**6)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Draw a run as the workflow would make it: factors that its method ignores are unset."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    head = {"backbone": draw(NAMES), "dataset": draw(NAMES), "method": method.name}
    if not method.adapt:
        return Run(**head)
    factors: dict[str, Any] = {
        "rank": draw(SMALL),
        "layers": draw(st.sampled_from(["naive", "gg-safe", "all"])),
        "epochs": draw(SMALL),
        "seed": draw(st.integers(0, 2**32)),
    }
    if method.uses_gap:
        factors["calibration"] = draw(st.sampled_from(["in-domain", "ood", "mixed"]))
        factors["calibration_size"] = draw(SMALL)
        noise = float(f"{draw(st.floats(0, 1000)):g}")
        if noise:
            factors |= {"noise": noise, "noise_scale": draw(st.sampled_from(["unit", "raw"]))}
    return Run(**head, **factors)


@given(runs())
def test_a_path_says_its_run_needs_no_quoting_and_stays_below_its_folder(run: Run) -> None:
    assert Run.parse(run.path) == run
    assert re.fullmatch(r"[A-Za-z0-9._/-]+", run.path)
    assert not {"", ".", ".."} & set(run.path.split("/"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "mini-blip2/scenes",
        "mini-blip2/scenes/no-such-method/rank1_naive_epochs3/no-gap/seed1",
        "mini-blip2/scenes/lora-kaiming/no-adapter",
        "mini-blip2/scenes/zero-shot/rank1_naive_epochs3/no-gap/seed1",
        "mini-blip2/scenes/gap-init/rank01_naive_epochs3/in-domain-256/seed1",
        "mini-blip2/scenes/gap-init/rank1_naive_epochs3/in-domain-256_noise-unit-0/seed1",
        "mini-blip2/scenes/gap-init/rank1_naive_epochs3/in-domain-256/seed1/more",
    ],
)
def test_what_is_no_path_of_a_run_is_refused(path: str) -> None:
    with pytest.raises(GapinitError, match="is not the path of a run"):
        Run.parse(path)


@pytest.fixture
def config() -> Config:
    """Return a configuration with three seeds and its own defaults for epochs and calibration."""
    return Config.model_validate(
        {
            "name": "test",
            "backbone": "mini-blip2",
            "backbones": {"large": "mini-large", "small": "mini-small"},
            "recipes": {"mini-large": {"training": {"epochs": 9}}},
            "datasets": {"in-domain": "scenes", "ood": "scenes-ood"},
            "seeds": [1, 2, 3],
            "calibration": {"size": 128, "source": "mixed"},
            "layers": {"num_layers": 2},
            "training": {"epochs": 4},
            "experiments": ["table2"],
        }
    )


def experiment(**changes: Any) -> dict[str, Any]:
    """Return a small legal experiment with some keys changed."""
    return {
        "title": "A table",
        "paper": "gap-init",
        "place": "Table 2",
        "metrics": ["CIDEr"],
        "rows": [
            {"id": "lora", "label": "LoRA", "method": "lora-gaussian"},
            {"id": "gap", "label": "Gap-Init", "method": "gap-init"},
        ],
    } | changes


def rows_of(tmp_path: Path, config: Config, content: dict[str, Any]) -> Any:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return table_rows(load_experiment(path), config, str(path))


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "r", "label": "A row", "method": "gap-init"} | changes


def test_a_row_is_the_product_of_its_lists(tmp_path: Path, config: Config) -> None:
    given_row = row(
        id="{method}-{layers}-{noise}",
        label="{method} at {noise}",
        published="{noise}",
        method=["gap-init", "random-b"],
        layers=["naive", "all"],
        noise=[0.5, 1.0],
    )
    rows = rows_of(tmp_path, config, experiment(rows=[given_row]))
    assert [row.id for row in rows] == [
        f"{method}-{layers}-{noise}"
        for method in ("gap-init", "random-b")
        for layers in ("naive", "all")
        for noise in ("0.5", "1")
    ]
    assert rows[1].label == "gap-init at 1" and rows[1].published == "1"
    first = rows[0].runs[0]
    assert (first.method, first.noise, first.noise_scale) == ("gap-init", 0.5, "unit")
    assert [run.seed for run in rows[0].runs] == [1, 2, 3]


def test_defaults_come_from_the_configuration(tmp_path: Path, config: Config) -> None:
    run = rows_of(tmp_path, config, experiment())[1].runs[0]
    assert (run.epochs, run.calibration, run.calibration_size) == (4, "mixed", 128)
    seeded = rows_of(tmp_path, config, experiment(seeds=[9]))
    assert [run.seed for row in seeded for run in row.runs] == [9, 9]


def test_factors_that_a_method_ignores_do_not_make_new_runs(tmp_path: Path, config: Config) -> None:
    given_rows = [
        row(id="a", method="lora-kaiming", calibration_size=16, noise=0.5),
        row(id="b", method="lora-kaiming", calibration="ood"),
        row(id="c", method="gap-init", noise=0, noise_scale="raw"),
        row(id="d", method="gap-init", noise=0, noise_scale="unit"),
        row(id="e", method="text-mean", noise=0.5),
        row(id="f", method="zero-shot", rank=8),
    ]
    rows = rows_of(tmp_path, config, experiment(rows=given_rows))
    assert rows[0].runs == rows[1].runs
    assert rows[2].runs == rows[3].runs
    assert rows[4].runs[0].noise == 0 and rows[4].runs[0].calibration == "mixed"
    assert len(rows[5].runs) == 1 and not rows[5].runs[0].trained


def test_a_backbone_is_a_factor_like_the_others(tmp_path: Path, config: Config) -> None:
    given_row = row(
        id="{backbone}-{method}",
        label="{method} on {backbone}",
        published="{backbone}",
        backbone=["large", "small"],
        method=["gap-init", "random-b"],
    )
    rows = rows_of(tmp_path, config, experiment(rows=[given_row, row(id="{backbone}")]))
    assert [(row.id, row.runs[0].backbone) for row in rows] == [
        ("large-gap-init", "mini-large"),
        ("large-random-b", "mini-large"),
        ("small-gap-init", "mini-small"),
        ("small-random-b", "mini-small"),
        ("mini-blip2", "mini-blip2"),
    ]
    assert (rows[3].label, rows[3].published) == ("random-b on small", "small")


def test_epochs_are_the_rows_or_the_backbones_or_the_configurations(
    tmp_path: Path, config: Config
) -> None:
    given_rows = [
        row(id="{backbone}", backbone=["large", "small"]),
        row(id="{backbone}-{epochs}", backbone=["large", "small"], epochs=2),
        row(id="says {epochs}", backbone="large"),
    ]
    rows = rows_of(tmp_path, config, experiment(rows=given_rows))
    assert [row.runs[0].epochs for row in rows] == [9, 4, 2, 2, 9]
    assert rows[4].id == "says 9" and rows[4].runs == rows[0].runs


def test_a_row_may_have_a_reference_of_its_own(tmp_path: Path, config: Config) -> None:
    both = {"backbone": ["large", "small"]}
    given_rows = [
        row(id="lora", method="lora-gaussian"),
        row(id="gap"),
        row(id="{backbone}-lora", reference="{backbone}-gap", method="pissa", **both),
        row(id="{backbone}-gap", reference="{backbone}-gap", **both),
    ]
    rows = rows_of(tmp_path, config, experiment(reference="lora", rows=given_rows))
    assert [row.reference for row in rows[:2]] == ["lora", "lora"]
    assert [row.reference for row in rows[2:]] == ["large-gap", "small-gap"] * 2


CLAIM = {"text": "better", "claim": "CIDEr(gap) >= CIDEr(lora)"}


def claiming(claim: str) -> dict[str, Any]:
    return experiment(claims=[CLAIM | {"claim": claim}])


WRONG = {
    "unknown method": (experiment(rows=[row(method="lora")]), "unknown method 'lora', expected"),
    "unknown metric": (experiment(metrics=["CIDER"]), "unknown metric 'CIDER', expected one of"),
    "unknown layers": (experiment(rows=[row(layers="top")]), "'naive', 'gg-safe', 'all' or"),
    "negative noise": (experiment(rows=[row(noise=-0.1)]), "rows.0.noise"),
    "noise with many digits": (experiment(rows=[row(noise=0.1234567)]), "significant digits"),
    "empty list": (experiment(rows=[row(method=[])]), "'method' of row 'r' is an empty list"),
    "unknown factor": (experiment(rows=[row(id="{size}")]), "braces in '{size}': 'size', expected"),
    "attribute": (experiment(rows=[row(label="{noise.real}")]), "braces in '{noise.real}'"),
    "open brace": (experiment(rows=[row(reference="a {noise")]), "braces in 'a {noise'"),
    "same id": (experiment(rows=[row(), row()]), "two rows have the id 'r'"),
    "unknown reference": (experiment(reference="gapinit"), "unknown row 'gapinit', expected"),
    "unknown reference of a row": (
        experiment(reference="gap", rows=[row(id="gap"), row(reference="{method}")]),
        "row 'r': key 'reference': unknown row 'gap-init', expected one of: gap, r",
    ),
    "row without a reference": (
        experiment(rows=[row(id="gap", reference="gap"), row()]),
        "row 'r' has no 'reference', but other rows have",
    ),
    "unknown part": (
        experiment(rows=[row(id="{backbone}", backbone=["small", "tiny"])]),
        "row '{backbone}': key 'backbone': no backbone is configured for the part 'tiny' "
        "(key 'backbones'), expected one of: large, small",
    ),
    "claim on no row": (
        claiming("CIDEr(gap) > CIDEr(l)"),
        "claim 'CIDEr(gap) > CIDEr(l)': no row or method 'l', expected one of: lora, gap, lora-",
    ),
    "claim on no such factor": (
        claiming("CIDEr(gap) > CIDEr(gap-init, r=8)"),
        "no row for CIDEr(gap-init, r=8), expected one of: gap (method=gap-init",
    ),
    "claim on no metric": (claiming("Bleu_4(r) > Bleu_4(r)"), "unknown metric 'Bleu_4'"),
    "claim that says nothing": (
        claiming("CIDEr(r)"),
        "claims.0.claim': 'CIDEr(r)': expected METRIC",
    ),
    "std with margin": (claiming("sd(CIDEr(r)) < sd(CIDEr(r)) - 1"), "without a margin"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_experiment_is_one_message_that_names_the_file(
    tmp_path: Path, config: Config, name: str
) -> None:
    content, message = WRONG[name]
    with pytest.raises(GapinitError) as error:
        rows_of(tmp_path, config, content)
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)

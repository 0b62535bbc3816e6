"""Processor time of a whole grid as run, against every row of every table run alone.

Nothing is guessed of a job: Snakemake's own `benchmark:` files say what each one took (`cpu_time`),
and the last line of its log does where Snakemake allows no such file (rules with `cache:`).
With results at hand (`--results results/scenes`) it is their configuration's grid, and what its
jobs took is kept (`results/default_grid_jobs.csv`). From a fresh clone the default grid, most of an
hour, is worked out from the jobs kept of its last complete run, and the small grid of
`config/test.yaml` is run in a folder of its own, so that something is measured here and now.

A row that is run alone, without caches, needs for each of its runs: states and gap (where the
method has one, and the step log's), training on the whole model, and for each dataset that the
table scores features, prediction and score. Training on the whole model is the run's own tail plus
one pass of the frozen layers a sample and epoch, which is what the trunk's job took. This is the
conservative reading: data and backbone are given. In the literal one each row makes them, too.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, Result, Spread, Target, cpu_seconds, environment
from gapinit.artifacts.artifacts import atomic_file
from gapinit.config.runs import Run
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.workflow.plan import Plan, make_plan
from gapinit.workflow.shared_jobs import evaluation_jobs

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "config"
KEPT = RESULTS / "default_grid_jobs.csv"
COLUMNS = ("kind", "job", "cpu_seconds")


@dataclass
class Times:
    """The processor time of every job that was run, by kind and name."""

    jobs: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    missing: int = 0

    @property
    def total(self) -> float:
        """Return the time of all jobs, each once."""
        return sum(sum(jobs.values()) for jobs in self.jobs.values())

    def of(self, kind: str, name: str) -> float:
        """Return a job's time; of one that was not measured alone, the median of its kind."""
        jobs = self.jobs.get(kind) or {}
        if name not in jobs:
            self.missing += 1
            return statistics.median(jobs.values()) if jobs else 0.0
        return jobs[name]


def read_times(results: Path, plan: Plan) -> Times:
    """Read the benchmark files of a configuration's results, of its data and its backbones.

    A job of several seeds or datasets is shared out evenly among them. Each alone would take
    longer, since the start is paid once: this is in favour of rows that are run alone.
    """
    name = plan.config.name
    made = {f"{row}/predict_{it.name}": it for it in evaluation_jobs(plan) for row in it.rows}
    times = Times()
    for kind, folder in {
        "data": results / "1_data" / "benchmarks",
        "gap": results / name / "benchmarks" / "3_gap",
        "features": results / name / "benchmarks" / "5_evaluate" / "features",
        "train": results / name / "benchmarks" / "4_train",
        "evaluate": results / name / "benchmarks" / "5_evaluate",
    }.items():
        for path in sorted(folder.rglob("*.tsv")):
            place = path.relative_to(folder).with_suffix("").as_posix()
            row, _, job = place.rpartition("/")
            own, parts = kind, [place]
            if kind == "train":
                parts = [f"{row}/seed{seed}" for seed in job.removeprefix("seed").split("-")]
            elif place in made:
                own, parts = "predict", [f"{row}/{it}" for it in made[place].paths()]
            elif kind == "evaluate":
                if not job.startswith("score_"):
                    continue  # features, which have a folder of their own
                own, (names, _, dataset) = "score", job.removeprefix("score_").partition("_on_")
                seeds = ["no-adapter"] if names == "no_adapter" else names.split("_")
                parts = [f"{row}/{_seed(seed)}/{dataset}" for seed in seeds]
            for part in parts:
                times.jobs[own][part] = _cpu_time(path) / len(parts)
    for kind, folder in {
        "backbone": results / "1_backbones" / "logs",
        "states": results / name / "logs" / "2_states",
        "trunk": results / name / "logs" / "4_train" / "trunk",
    }.items():
        for path in sorted(folder.rglob("*.log")):
            place = path.relative_to(folder).with_suffix("").as_posix()
            times.jobs[kind][place] = _logged_cpu_time(path)
    if not times.jobs:
        raise GapinitError(f"{results}/{name}: no benchmark files here, expected a finished grid")
    return times


def _seed(name: str) -> str:
    return f"seed{name}" if name.isdecimal() else name


def _cpu_time(path: Path) -> float:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return sum(float(row["cpu_time"]) for row in rows)
    except (KeyError, ValueError):
        # A job too short to be sampled: its wall-clock time.
        return sum(float(row["s"]) for row in rows)


def _logged_cpu_time(path: Path) -> float:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = re.fullmatch(r"took .* s, (.*) s of CPU time", lines[-1] if lines else "")
    if found is None:
        raise GapinitError(f"{path}: no line at its end says what the job took: run it again")
    return float(found[1])


def keep_times(times: Times, path: Path = KEPT) -> None:
    """Write what each job took, a row each; the first line says where and when."""
    where = environment()
    with (
        atomic_file(path, recorded=False) as partial,
        open(partial, "w", encoding="utf-8", newline="") as file,
    ):
        file.write(f"# {date.today()}, {where['processor']}, {where['cores']} cores\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for kind, jobs in sorted(times.jobs.items()):
            writer.writerows((kind, job, f"{taken:.3f}") for job, taken in sorted(jobs.items()))


def kept_times(path: Path = KEPT) -> tuple[Times, str]:
    """Read what `keep_times` wrote, and where and when that was."""
    times = Times()
    with open(path, encoding="utf-8", newline="") as file:
        where = file.readline().removeprefix("# ").strip()
        for row in csv.DictReader(file):
            times.jobs[row["kind"]][row["job"]] = float(row["cpu_seconds"])
    return times, where


def run_alone(plan: Plan, run: Run, table: str, times: Times) -> float:
    """Return what one run costs where nothing is shared."""
    total = 0.0
    if run.trained:
        for dataset in plan.sources(run.calibration or plan.config.calibration.source):
            total += times.of("states", f"{run.backbone}/{dataset}")
        total += times.of("gap", f"{run.backbone}/{plan.gap_name(run)}")
        epochs = run.epochs or plan.config.training_of(run.backbone).epochs
        total += epochs * times.of("trunk", f"{run.backbone}/{run.dataset}/{run.layers}")
        total += times.of("train", run.path)
    for dataset in plan.evaluated_on(table):
        total += times.of("features", f"{run.backbone}/{dataset}")
        total += times.of("predict", f"{run.path}/{dataset}")
        total += times.of("score", f"{run.path}/{dataset}")
    return total


def rows_alone(plan: Plan, times: Times) -> Iterator[tuple[float, float]]:
    """Yield of each row of each table what it costs given data and backbone, and with them."""
    for table, rows in plan.rows.items():
        for row in rows:
            given = sum(run_alone(plan, run, table, times) for run in row.runs)
            datasets = {*plan.evaluated_on(table), *(run.dataset for run in row.runs)}
            backbones = {run.backbone for run in row.runs}
            made = sum(times.of("data", name) for name in sorted(datasets))
            made += sum(times.of("backbone", name) for name in sorted(backbones))
            yield given, given + made


def run_small_grid(results: Path) -> float:
    """Run `config/test.yaml` into a folder; return the processor time of all of it."""
    command = [
        sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), "--quiet", "all",
        "--snakefile", str(REPOSITORY / "Snakefile"), "--scheduler", "greedy",
        "--directory", str(results.parent),
        "--configfile", str(CONFIG / "test.yaml"), "--config", f"results={results.name}",
    ]  # fmt: skip
    return cpu_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def compare(plan: Plan, times: Times, whole: float) -> Result:
    """Return the row of the table; `whole`: the grid's processor time."""
    costs = list(rows_alone(plan, times))
    given, literal = (sum(values) for values in zip(*costs, strict=True))
    made = sum(sum(times.jobs[kind].values()) for kind in ("data", "backbone"))
    runs = [run for rows in plan.rows.values() for row in rows for run in row.runs]
    return Result(
        "default_grid",
        [
            Target(
                "the grid, all tables: processor time",
                "every row of every table alone, no caches (data and backbone made, too)",
                Spread([literal / whole]),
                "at least",
                8.0,
                scale=f"configuration '{plan.config.name}'",
            ),
        ],
        {
            "processor seconds, grid as run": whole,
            "of these, data and backbones": made,
            "processor seconds, rows alone, data and backbone made": literal,
            "processor seconds, rows alone, data and backbone given": given,
            "conservative ratio (data and backbone given to both sides)": given / (whole - made),
            "runs in all rows": len(runs),
            "runs, each once": len(set(runs)),
            "jobs not measured alone (median of their kind)": times.missing,
            **{f"jobs measured: {kind}": len(jobs) for kind, jobs in sorted(times.jobs.items())},
        },
        {"configuration": plan.config.name},
        ["One grid was run, so there is no spread; the other side is worked out from its jobs."],
    )


def plan_of(name: str) -> Plan:
    """Return the plan of a configuration by the name of its results."""
    default: Mapping[str, Any] = read_yaml(CONFIG / "default.yaml")
    for path in sorted(CONFIG.glob("*.yaml")):
        content = read_yaml(path)
        if content.get("name") == name and (path.stem == "default" or "experiments" in content):
            return make_plan(_merged(default, content), CONFIG)
    raise GapinitError(f"no configuration in {CONFIG}/ is named '{name}'")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def main() -> None:
    """Compare on results at hand, or on the jobs kept of such, and run the small grid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="results of a finished grid: results/scenes")
    given: Path | None = parser.parse_args().results
    default = REPOSITORY / "results" / "scenes"
    if given is None and (default / "report.html").is_file():
        given = default
    if given is not None:
        plan = plan_of(given.name)
        times = read_times(given.parent, plan)
        if plan.config.name == "scenes":
            keep_times(times)
        compare(plan, times, times.total).write()
        return
    times, where = kept_times()
    result = compare(plan_of("scenes"), times, times.total)
    result.notes.append(f"Its jobs are those of the last complete run: {where}, {KEPT.name}.")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        whole = run_small_grid(results)
        plan = plan_of("test")
        small = compare(plan, read_times(results, plan), whole)
    result.measured["the small grid (config/test.yaml), run now: ratio"] = small.targets[0].measured
    for name, value in small.measured.items():
        result.measured[f"the small grid, run now: {name}"] = value
    result.write()


if __name__ == "__main__":
    main()

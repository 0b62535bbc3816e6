"""Processor time of a whole grid, compared with the sum of all table rows run separately.

The time of each job is measured: by Snakemake's `benchmark:` file (`cpu_time`), or by the last line
of its log for rules with `cache:`, for which Snakemake allows no such file. With finished results
(`--results results/scenes`) the program uses their grid and stores the times of its jobs in
`results/default_grid_jobs.csv`. Without results it uses the stored times of the default grid, which
would take most of an hour, and runs the small grid of `config/test.yaml` in a separate folder.

A row that is run separately, without caches, needs for each run: states and gap (of its method, and
for the step log), training on the whole model, and for each dataset of the table features,
prediction and score. Training on the whole model takes the time of the run's tail plus that of the
trunk's job for each epoch. The conservative ratio takes data and backbone as given; in the literal
one each row makes them, too.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.measure import RESULTS, Result, Spread, Target, cpu_seconds, environment
from gapinit.artifacts.artifacts import atomic_file
from gapinit.config.runs import Run
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.workflow.plan import Plan, read_plan
from gapinit.workflow.shared_jobs import evaluation_jobs

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "config"
KEPT = RESULTS / "default_grid_jobs.csv"
COLUMNS = ("kind", "job", "cpu_seconds")


@dataclass
class Times:
    """The processor time of every measured job, by kind and name."""

    jobs: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    missing: int = 0

    @property
    def total(self) -> float:
        """Return the time of all jobs, each once."""
        return sum(sum(jobs.values()) for jobs in self.jobs.values())

    def of(self, kind: str, name: str) -> float:
        """Return the time of a job, or the median of its kind if it was not measured alone."""
        jobs = self.jobs.get(kind) or {}
        if name not in jobs:
            self.missing += 1
            return statistics.median(jobs.values()) if jobs else 0.0
        return jobs[name]


def read_times(results: Path, plan: Plan) -> Times:
    """Read the benchmark files of a configuration's results, its data and its backbones.

    The time of a job with several seeds or datasets is divided equally among them. Separate jobs
    would take longer, since each would start a process; so this favours the rows run separately.
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
                    continue  # features are read from their own folder
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
        # The job was too short for Snakemake to sample: use its wall-clock time.
        return sum(float(row["s"]) for row in rows)


def _logged_cpu_time(path: Path) -> float:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = re.fullmatch(r"took .* s, (.*) s of CPU time", lines[-1] if lines else "")
    if found is None:
        raise GapinitError(f"{path}: the last line does not give the job's time: run it again")
    return float(found[1])


def keep_times(times: Times, path: Path = KEPT) -> None:
    """Write the time of each job, one line per job; the first line has machine and date."""
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
    """Read the file of `keep_times`; return its times, and its machine and date."""
    times = Times()
    with open(path, encoding="utf-8", newline="") as file:
        where = file.readline().removeprefix("# ").strip()
        for row in csv.DictReader(file):
            times.jobs[row["kind"]][row["job"]] = float(row["cpu_seconds"])
    return times, where


def run_alone(plan: Plan, run: Run, table: str, times: Times) -> float:
    """Return the time of one run without shared jobs."""
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
    """Yield the time of each row of each table, without and with its data and backbones."""
    for table, rows in plan.rows.items():
        for row in rows:
            given = sum(run_alone(plan, run, table, times) for run in row.runs)
            datasets = {*plan.evaluated_on(table), *(run.dataset for run in row.runs)}
            backbones = {run.backbone for run in row.runs}
            made = sum(times.of("data", name) for name in sorted(datasets))
            made += sum(times.of("backbone", name) for name in sorted(backbones))
            yield given, given + made


def run_small_grid(results: Path) -> float:
    """Run `config/test.yaml` into a folder and return its processor time."""
    command = [
        sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), "--quiet", "all",
        "--snakefile", str(REPOSITORY / "Snakefile"), "--scheduler", "greedy",
        "--directory", str(results.parent),
        "--configfile", str(CONFIG / "test.yaml"), "--config", f"results={results.name}",
    ]  # fmt: skip
    return cpu_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def compare(plan: Plan, times: Times, whole: float) -> Result:
    """Return the result; `whole`: processor time of the grid."""
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
    """Return the plan of the configuration with this name."""
    for path in sorted(CONFIG.glob("*.yaml")):
        content = read_yaml(path)
        if content.get("name") == name and (path.stem == "default" or "experiments" in content):
            return read_plan(CONFIG, path)
    raise GapinitError(f"no configuration in {CONFIG}/ is named '{name}'")


def main() -> None:
    """Compare on finished results, or on stored times together with a run of the small grid."""
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

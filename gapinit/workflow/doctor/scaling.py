"""How long a configuration takes on 1, 8 or 64 GPUs and what bounds it: reckoned, not measured.

Each GPU job has the seconds that `gapinit doctor` estimates for it; the graph of jobs is played
through on a number of GPUs, a job as soon as its inputs and a GPU are there. The limit of any
number of GPUs is the longest chain of jobs.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gapinit.config.configuration import Shards
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.progress import show_bytes
from gapinit.workflow.doctor import Diagnosis, examine
from gapinit.workflow.doctor.gpu import BANDWIDTH, LOADING, Estimate
from gapinit.workflow.doctor.jobs import Jobs
from gapinit.workflow.plan import Plan
from gapinit.workflow.progress_line import Estimate as Schedule
from gapinit.workflow.progress_line import Job
from gapinit.workflow.shared_jobs import evaluation_jobs

START_SECONDS = 6.0
"""Of a job on Slurm: Snakemake starts twice more. Measured at 4 to 8 s."""
DIVIDED = Shards(trunk=8, predict=4)
DIVIDED_PROCESSES = 8
"""How the work of the longest chain is divided, to show what that does."""
Key = tuple[str, ...]


def job_graph(
    plan: Plan,
    jobs: Jobs,
    seconds: dict[Key, float],
    start: float,
    parts: Shards | None = None,
    processes: int | None = None,
) -> dict[int, Job]:
    """Return the GPU jobs of a plan as the rules make them, and which waits for which.

    `seconds` is by stage, backbone and what else names a piece of work; what is not there takes
    none. A job takes `start` beside its pieces: a row's seeds are trained by one job and predicted
    for on all datasets by one, extractions are divided into shards, and a training on N GPUs takes
    1/N of the time on each. `parts` and `processes`: instead of what the configuration says.

    ASSUME: what several GPUs say to each other, an adapter's gradient, takes no time.
    """
    made: dict[int, Job] = {}
    numbers: dict[Key, list[int]] = {}

    def add(keys: Sequence[Key], needs: Sequence[Key], shards: int = 1, gpus: int = 1) -> None:
        known = frozenset(number for need in needs for number in numbers.get(need, []))
        took = sum(seconds.get(key, 0.0) for key in keys) / shards / gpus
        for _ in range(shards):
            for key in keys:
                numbers.setdefault(key, []).append(len(made))
            made[len(made)] = Job(keys[0][0], start + took, gpus, known)

    parts = plan.config.shards if parts is None else parts
    for backbone, dataset in jobs.states:
        add([("states", backbone, dataset)], [], parts.states)
    for backbone, dataset in jobs.features:
        add([("features", backbone, dataset)], [], parts.features)
    states = list(numbers)
    for backbone, dataset, layers in jobs.trunks:
        # Layers are chosen from the gap of the states.
        needs = [key for key in states if key[:2] == ("states", backbone)]
        add([("trunk", backbone, dataset, layers)], needs, parts.trunk)
    for chunk, rows in plan.chunks().items():
        for row in rows:
            runs = [Run.parse(f"{row}/seed{seed}") for seed in chunk]
            trunk = ("trunk", runs[0].backbone, runs[0].dataset, str(runs[0].layers))
            gpus = processes or plan.training_of(runs[0].backbone).num_processes
            add([_train_key(run) for run in runs], [trunk], gpus=gpus)
    for form in evaluation_jobs(plan):
        for row in form.rows:
            runs = [Run.parse(f"{row}/{seed}") for seed in form.seeds]
            pairs = [(run, dataset) for run in runs for dataset in form.datasets]
            seen = [("features", run.backbone, dataset) for run, dataset in pairs]
            keys = [("predict", run.backbone, dataset, run.path) for run, dataset in pairs]
            add(keys, [*seen, *map(_train_key, runs)], parts.predict)
    return made


def _train_key(run: Run) -> Key:
    return ("train", run.backbone, run.dataset, run.path)


def job_seconds(found: Diagnosis, estimate: Estimate) -> dict[Key, float]:
    """Return the estimate of each piece of GPU work: a run, a prediction, an extraction."""
    jobs = found.jobs
    seconds: dict[Key, float] = {}
    keys: dict[tuple[str, str], list[Key]] = {}
    for backbone, dataset in jobs.states:
        keys.setdefault(("states", backbone), []).append(("states", backbone, dataset))
    for backbone, dataset, layers in jobs.trunks:
        keys.setdefault(("trunk", backbone), []).append(("trunk", backbone, dataset, layers))
    for run in jobs.trained:
        keys.setdefault(("train", run.backbone), []).append(_train_key(run))
    for backbone, dataset in jobs.features:
        keys.setdefault(("features", backbone), []).append(("features", backbone, dataset))
    for run, dataset in jobs.predictions:
        key = ("predict", run.backbone, dataset, run.path)
        keys.setdefault(("predict", run.backbone), []).append(key)
    for group, named in keys.items():
        each = estimate.seconds_of(*group)
        if len(each) == len(named):
            seconds |= dict(zip(named, each, strict=True))
        elif each:
            raise GapinitError(f"{group}: {len(each)} of {len(named)} jobs could be estimated")
    return seconds


def longest_chain(jobs: dict[int, Job]) -> list[int]:
    """Return the chain of jobs that takes longest, first to last: no number of GPUs shortens it."""
    ends: dict[int, float] = {}
    before: dict[int, int | None] = {}
    for number, job in jobs.items():  # a job stands after what it needs
        last = max(job.needs, key=lambda need: ends[need], default=None)
        before[number] = last
        ends[number] = job.expected + (ends[last] if last is not None else 0.0)
    chain = [max(ends, key=lambda number: ends[number])]
    while (previous := before[chain[-1]]) is not None:
        chain.append(previous)
    return chain[::-1]


def workflow_jobs(root: Path, configfile: Path) -> dict[str, int]:
    """Return how many jobs of each rule `snakemake -n` counts in a folder where nothing is made.

    Rules of one stage whose names depend on the plan (`train_42_123`) count as one.
    """
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"),
             "--configfile", str(configfile.resolve()), "--directory", empty, "--dry-run",
             "--quiet", "rules", "--cores", "1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise GapinitError(f"`snakemake -n` failed: {(done.stdout + done.stderr)[-2000:]}")
    table = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    counts: dict[str, int] = {}
    for rule, count in dict(table).items():  # a dry run says it at its beginning and its end
        stage = re.sub(r"^(train|predict|score)_.*", r"\1", rule)
        counts[stage] = counts.get(stage, 0) + int(count)
    return counts


def scaling_page(plan: Plan, configfile: Path, gpus: Sequence[int] = (1, 8, 64)) -> str:
    """Return the page: jobs, bytes, GPU-hours by stage, wall time by GPUs, what bounds it."""
    found = examine(plan)
    estimate: Estimate = found.estimate
    seconds = job_seconds(found, estimate)
    graph = job_graph(plan, found.jobs, seconds, START_SECONDS)
    counts = workflow_jobs(plan.folder.parent, configfile)
    work = sum(job.expected * job.cores for job in graph.values())
    chain = longest_chain(graph)
    bound = sum(graph[number].expected for number in chain)
    lines = [
        "# Scale",
        "",
        f"Made by `gapinit cluster scaling --configfile {configfile} --output docs/scaling.md`.",
        "Every time on this page is **reckoned** from the shapes of models and the sizes of the",
        f"datasets, none is measured: {found.tflops:g} TFLOP/s reached in bfloat16 (an eighth in",
        f"float32), {BANDWIDTH / 1e12:g} TB/s while decoding, weights loaded at",
        f"{show_bytes(LOADING)}/s by every job. Reading images, tokenising, scoring, downloads and",
        "waiting in a queue are left out. Measured, on a small Slurm, are the",
        f"{START_SECONDS:g} s (4 to 8) that a job takes to start, added to each.",
        "",
        "## Jobs",
        "",
        f"`snakemake -n` counts {counts.get('total', sum(counts.values())):,} jobs:",
        "",
        *_table(
            ("rule", "jobs"),
            [(rule, f"{count:,}") for rule, count in counts.items() if rule != "total"],
        ),
        "",
        "## Bytes",
        "",
        *_table(("what", "files", "size"), _bytes(found)),
        "",
        "## GPU-hours",
        "",
        *_table(
            ("stage", "backbone", "pieces", "GPU-hours", "longest, hours", "GPU memory"),
            [
                (one.stage, one.backbone, f"{one.jobs:,}", f"{one.seconds / 3600:.1f}",
                 f"{max(estimate.seconds_of(one.stage, one.backbone)) / 3600:.2f}",
                 show_bytes(one.memory))
                for one in found.work
            ],
        ),
        "",
        "A piece is an extraction, a run, or a run's predictions for one dataset, on one GPU.",
        f"In all {work / 3600:.0f} GPU-hours in {len(graph):,} GPU jobs, their starts included.",
        "",
        "## Wall time",
        "",
        *_table(
            ("GPUs", "hours", "of the time GPUs are busy", "bounded by"),
            [_wall(graph, number, work, bound) for number in gpus],
        ),
        "",
        f"No number of GPUs goes below {bound / 3600:.1f} hours, the longest chain of jobs: "
        + ", ".join(f"{graph[one].rule} {graph[one].expected / 3600:.1f} h" for one in chain)
        + ".",
        f"Beyond {math.ceil(work / bound)} GPUs, all the work over that chain, most only wait.",
        "",
        *_advice(graph, chain),
        "",
        *_divided(plan, found.jobs, seconds, gpus),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _divided(plan: Plan, jobs: Jobs, seconds: dict[Key, float], gpus: Sequence[int]) -> list[str]:
    """Return the same table with the work of the longest chain divided."""
    several = [number for number in gpus if number >= DIVIDED_PROCESSES]
    graph = job_graph(plan, jobs, seconds, START_SECONDS, DIVIDED, DIVIDED_PROCESSES)
    work = sum(job.expected * job.cores for job in graph.values())
    chain = longest_chain(graph)
    bound = sum(graph[number].expected for number in chain)
    longest = graph[max(chain, key=lambda number: graph[number].expected)].rule
    return [
        f"With `shards: {{trunk: {DIVIDED.trunk}, predict: {DIVIDED.predict}}}` and `training: "
        f"{{num_processes: {DIVIDED_PROCESSES}}}`",
        f"the longest chain is {bound / 3600:.1f} hours, most of it `{longest}`, and "
        f"{len(graph):,} GPU jobs do the work:",
        "",
        *_table(
            ("GPUs", "hours", "of the time GPUs are busy", "bounded by"),
            [_wall(graph, number, work, bound) for number in several],
        ),
    ]


def _wall(graph: dict[int, Job], gpus: int, work: float, bound: float) -> tuple[str, ...]:
    wall = Schedule(graph, gpus).remaining(0.0)
    by = "the longest chain" if wall < 1.2 * bound else "the number of GPUs"
    return f"{gpus}", f"{wall / 3600:.1f}", f"{work / (gpus * wall):.0%}", by


def _bytes(found: Diagnosis) -> list[tuple[str, ...]]:
    totals: dict[str, list[int]] = {}
    for need in found.needs:
        totals.setdefault(need.kind, []).append(need.bytes)
    fetched = [file.bytes or 0 for file in found.files]
    weights = [one.bytes or 0 for one in found.weights]
    return [
        ("datasets, downloaded", f"{len(fetched)}", show_bytes(sum(fetched))),
        ("weights, downloaded", f"{len(weights)}", show_bytes(sum(weights))),
        *((kind, f"{len(sizes):,}", show_bytes(sum(sizes))) for kind, sizes in totals.items()),
    ]


def _advice(graph: dict[int, Job], chain: list[int]) -> list[str]:
    longest = max(chain, key=lambda number: graph[number].expected)
    rule = graph[longest].rule
    share = graph[longest].expected / sum(graph[number].expected for number in chain)
    what = {
        "train": "one run on several GPUs (`training: {num_processes: N}`, in the configuration or "
        "in the backbone's file), or fewer epochs; seeds that share a job (`seeds_per_job`) save "
        "starts and lengthen this chain",
        "predict": "shards of the prediction (`shards: {predict: N}` in the configuration), larger "
        "batches or fewer beams",
    }.get(rule, f"shards of the extraction (`shards: {{{rule}: N}}` in the configuration)")
    starts = START_SECONDS * len(graph) / 3600
    return [
        "## What to do about it",
        "",
        f"- {share:.0%} of the longest chain is one job of `{rule}`: {what}.",
        f"- Starting the jobs costs {starts:.1f} GPU-hours; groups (docs/cluster.md) put several",
        "  into one submission.",
        "- On one GPU only less work helps: runs that tables share, trunks and",
        "  image features are made once already.",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (columns, rule, *rows)]

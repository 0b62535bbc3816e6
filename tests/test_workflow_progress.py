"""The remaining time: bounds of any schedule, and corrections from finished jobs."""

from __future__ import annotations

import inspect
import io
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.scheduling.job_scheduler import JobScheduler

from gapinit.workflow.progress_line import Estimate, Job, Status, duration, look_for_jobs_once


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, Job]:
    count = draw(st.integers(1, 12))
    return {
        job: Job(
            rule=draw(st.sampled_from("abc")),
            expected=draw(st.floats(0.1, 100)),
            cores=draw(st.integers(1, 6)),
            needs=frozenset(draw(st.sets(st.integers(0, job - 1))) if job else ()),
        )
        for job in range(count)
    }


@given(jobs=graphs(), cores=st.integers(1, 4))
def test_remaining_lies_between_the_bounds_of_any_schedule(jobs, cores):
    total = sum(job.expected for job in jobs.values())
    work = sum(job.expected * min(job.cores, cores) for job in jobs.values()) / cores
    longest: dict[int, float] = {}
    for id_, job in jobs.items():
        longest[id_] = job.expected + max((longest[need] for need in job.needs), default=0)
    remaining = Estimate(jobs, cores).remaining(now=0)
    slack = 1 + 1e-9
    assert max(work, max(longest.values())) <= remaining * slack
    assert remaining <= total * slack


@given(jobs=graphs(), cores=st.integers(1, 4))
def test_a_finished_graph_leaves_nothing(jobs, cores):
    estimate = Estimate(jobs, cores)
    for id_ in jobs:
        estimate.start(id_, 0)
        estimate.finish(id_, 7)
    assert estimate.remaining(now=7) == 0
    assert estimate.running() == []


def test_jobs_slower_than_stated_raise_the_estimate_of_their_rule_most():
    jobs = {id_: Job("train", 10) for id_ in range(10)} | {10: Job("score", 10)}
    estimate = Estimate(jobs, cores=1)
    before = estimate.remaining(now=0)
    for id_ in range(5):
        estimate.start(id_, 20 * id_)
        estimate.finish(id_, 20 * (id_ + 1))
    assert before == pytest.approx(110)
    # Left: five `train` jobs of nearly 20 s each, and one `score` job of 10 to 20 s.
    assert 5 * 18 + 10 < estimate.remaining(now=100) < 5 * 20 + 20


def test_a_job_that_exceeds_its_estimate_never_counts_as_done():
    estimate = Estimate({0: Job("backbone", 10)}, cores=2)
    estimate.start(0, 0)
    assert estimate.remaining(now=4) == pytest.approx(6)
    assert estimate.remaining(now=500) > 1


def test_a_log_that_is_no_terminal_gets_no_control_characters():
    stream = io.StringIO()
    status = Status(Estimate({0: Job("train", 10)}, 1), stream, clock=lambda: 0.0)
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", None, None)
    record.__dict__.update(event="job_started", jobs=[0])
    status.emit(record)
    status.write("from Snakemake\n")
    assert status.line().endswith("0 of 1 jobs, 0 s so far, about 10 s left; running: train")
    status.close()
    assert stream.getvalue() == "from Snakemake\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (286, "4 min 50 s"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("local", [True, False])
def test_only_a_local_run_loses_its_limit_on_jobs_a_second(local):
    scheduler = SimpleNamespace(job_rate_limiter="100/1s")
    look_for_jobs_once(SimpleNamespace(local_exec=local, scheduler=scheduler))
    assert scheduler.job_rate_limiter == (None if local else "100/1s")
    # Fails if Snakemake renames the attribute; nothing else would show it.
    source = inspect.getsource(JobScheduler)
    assert "self.job_rate_limiter = (" in source and "if self.job_rate_limiter is None" in source

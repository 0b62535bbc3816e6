"""A status line with progress and remaining time below Snakemake's output.

The number of jobs says little about time: pretraining takes minutes, scoring a second. So each rule
states the expected seconds of a job (`resources: expected_s`), measured times of finished jobs
correct them, and the remaining jobs are scheduled on the cores. No import of torch or Snakemake;
the Snakefile calls `follow` when a run starts.
"""

from __future__ import annotations

import heapq
import logging
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

EXPECTED = "expected_s"
UNSTATED_SECONDS = 5.0
PRIOR_SECONDS = 30.0  # weight of the ratio 1 against measured times
REDRAW_SECONDS = 1.0
LOG_EVERY_SECONDS = 15.0
BAR_WIDTH = 20


@dataclass(frozen=True)
class Job:
    """A job in the estimate: expected seconds, cores, and the jobs on which it depends."""

    rule: str
    expected: float
    cores: int = 1
    needs: frozenset[int] = frozenset()


@dataclass
class Estimate:
    """Remaining wall time of a graph of jobs on a number of cores.

    A job of rule r with stated time e is expected to take e · s_r, where s_r is the ratio of
    measured to stated time over the finished jobs of r, shrunk towards the ratio over all rules,
    which is shrunk towards 1.
    """

    jobs: Mapping[int, Job]
    cores: int
    started: dict[int, float] = field(default_factory=dict)
    finished: dict[int, float] = field(default_factory=dict)

    def start(self, job: int, now: float) -> None:
        """Record that a job started at `now` seconds."""
        self.started.setdefault(job, now)

    def finish(self, job: int, now: float) -> None:
        """Record that a job ended at `now` seconds."""
        self.finished.setdefault(job, now - self.started.get(job, now))

    def running(self) -> list[int]:
        """Return the running jobs, oldest first."""
        return [job for job in self.started if job in self.jobs and job not in self.finished]

    def remaining(self, now: float) -> float:
        """Return the expected seconds from `now` until all jobs are finished.

        The schedule is greedy: a job starts as soon as its inputs and enough cores are available.
        """
        speeds = self._speeds(now)
        left = {id_: job for id_, job in self.jobs.items() if id_ not in self.finished}
        cores = {id_: min(max(job.cores, 0), self.cores) for id_, job in left.items()}
        seconds = {id_: job.expected * speeds[job.rule] for id_, job in left.items()}
        waiting = {id_: set(job.needs & left.keys()) for id_, job in left.items()}
        followers: defaultdict[int, list[int]] = defaultdict(list)
        for id_, needs in waiting.items():
            for need in needs:
                followers[need].append(id_)
        running = self.running()
        # A job that exceeds its estimate still counts with a tenth of it.
        ends = [
            (max(seconds[id_] - (now - self.started[id_]), 0.1 * seconds[id_]), id_)
            for id_ in running
        ]
        heapq.heapify(ends)
        free = self.cores - sum(cores[id_] for id_ in running)
        ready = [id_ for id_ in left if not waiting[id_] and id_ not in self.started]
        clock = 0.0
        while ends or ready:
            for id_ in list(ready):
                if cores[id_] <= free:
                    ready.remove(id_)
                    free -= cores[id_]
                    heapq.heappush(ends, (clock + seconds[id_], id_))
            clock, ended = heapq.heappop(ends)
            free += cores[ended]
            for id_ in followers[ended]:
                waiting[id_].discard(ended)
                if not waiting[id_] and id_ not in self.started:
                    ready.append(id_)
        return clock

    def _speeds(self, now: float) -> dict[str, float]:
        """Return the ratio of measured to stated time for each rule."""
        stated: defaultdict[str, float] = defaultdict(float)
        measured: defaultdict[str, float] = defaultdict(float)
        took = dict(self.finished)
        for id_ in self.running():
            # A running job counts only after it has exceeded its stated time.
            if now - self.started[id_] > self.jobs[id_].expected:
                took[id_] = now - self.started[id_]
        for id_, seconds in took.items():
            if id_ in self.jobs:
                stated[self.jobs[id_].rule] += self.jobs[id_].expected
                measured[self.jobs[id_].rule] += seconds
        overall = (sum(measured.values()) + PRIOR_SECONDS) / (sum(stated.values()) + PRIOR_SECONDS)
        speeds = {}
        for job in self.jobs.values():
            # One more job of the rule, at the overall ratio: the first measurement counts half.
            weight = max(job.expected, 1e-3)
            speeds[job.rule] = (measured[job.rule] + weight * overall) / (stated[job.rule] + weight)
        return speeds


class Status(logging.Handler):
    """Reads Snakemake's log events and shows a status line below its output.

    On a terminal the line is redrawn in place; in a log file a line is added every 15 seconds.
    """

    def __init__(self, estimate: Estimate, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__()
        self.estimate = estimate
        self.stream = stream
        self.clock = clock
        self.began = self._last_line = clock()
        self._shown = self._line_open = False
        self._ended = threading.Event()
        # Re-entrant, because `write` may be called while the lock is held.
        self._mutex = threading.RLock()
        threading.Thread(target=self._tick, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Record jobs that start and end."""
        event = str(getattr(record, "event", "") or "")
        with self._mutex:
            if event == "job_started":
                for job in record.__dict__["jobs"]:
                    self.estimate.start(job, self.clock())
            elif event == "job_finished":
                self.estimate.finish(record.__dict__["job_id"], self.clock())

    def line(self) -> str:
        """Return the status line."""
        now = self.clock()
        jobs, done = self.estimate.jobs, len(self.estimate.finished)
        passed, left = now - self.began, self.estimate.remaining(now)
        fraction = passed / (passed + left) if left else 1.0
        filled = int(BAR_WIDTH * fraction)
        rules = Counter(jobs[job].rule for job in self.estimate.running())
        names = ", ".join(rule if n == 1 else f"{n} {rule}" for rule, n in rules.items())
        return (
            f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {fraction:4.0%}  "
            f"{done} of {len(jobs)} jobs, {duration(passed)} so far, about {duration(left)} left"
            + (f"; running: {names}" if names else "")
        )

    def write(self, text: str) -> int:
        """Write Snakemake's text above the status line."""
        with self._mutex:
            self._clear()
            self._line_open = not text.endswith("\n")
            return self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream.isatty()

    def close(self) -> None:
        """Remove the status line; Snakemake calls this at its end."""
        self._ended.set()
        with self._mutex:
            self._clear()
            self.stream.flush()
        super().close()

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW_SECONDS):
            with self._mutex:
                if self._ended.is_set() or self._line_open:
                    continue
                if self.isatty():
                    self._clear()
                    columns = shutil.get_terminal_size().columns
                    self.stream.write(self.line()[: columns - 1])
                    self._shown = True
                    self.stream.flush()
                elif self.clock() - self._last_line >= LOG_EVERY_SECONDS:
                    self._last_line = self.clock()
                    self.stream.write(self.line() + "\n")
                    self.stream.flush()

    def _clear(self) -> None:
        if self._shown:
            self.stream.write("\r\x1b[K")
            self._shown = False


def duration(seconds: float) -> str:
    """Return a duration as text: '45 s', '4 min 50 s', '2 h 5 min'.

    Durations above a minute are rounded to ten seconds, above an hour to a minute.
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    tens = round(seconds / 10)
    if tens < 360:
        minutes, rest = divmod(tens * 10, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def look_for_jobs_once(workflow: Any) -> None:
    """Remove Snakemake's limit on jobs per second if jobs run on this machine.

    With the limit (100 per second), Snakemake 9 repeats its search for jobs every second, and every
    finished job starts another such series: after some hundred short jobs the searches use a
    quarter of a core. A local run starts only a few jobs per second. Cluster runs keep the limit.
    """
    scheduler: Any = getattr(workflow, "scheduler", None)
    if getattr(workflow, "local_exec", False) and hasattr(scheduler, "job_rate_limiter"):
        scheduler.job_rate_limiter = None


def follow(workflow: Any) -> None:
    """Show the progress of a run; `workflow` is Snakemake's object.

    Called from `onstart`. No effect with `--quiet all` or with another logger plugin.
    """
    logger = logging.getLogger("snakemake.logging")
    streams = [one for one in logger.handlers if one.name == "DefaultStreamHandler"]
    quiet = {str(one).rpartition(".")[2].lower() for one in workflow.output_settings.quiet or ()}
    if not streams or quiet & {"all", "progress"}:
        return
    try:
        dag = workflow.persistence.dag
        jobs = graph(dag.needrun_jobs(), dag)
        cores = workflow.resource_settings.cores or len(jobs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Snakemake's internals: if another version changes them, the run has no progress line.
        logger.warning(f"No progress display with this version of Snakemake ({error}).")
        return
    handler = streams[0]
    status = Status(Estimate(jobs, cores), handler.stream, time.monotonic)  # type: ignore[attr-defined]
    handler.setStream(status)  # type: ignore[attr-defined]
    logger.addHandler(status)


def graph(needed: Iterable[Any], dag: Any) -> dict[int, Job]:
    """Return the jobs that Snakemake will run, by job id."""
    needed = list(needed)
    ids = {job: dag.jobid(job) for job in needed}
    return {
        ids[job]: Job(
            rule=job.rule.name,
            expected=float(job.resources.get(EXPECTED, UNSTATED_SECONDS if job.output else 0.0)),
            cores=int(job.threads),
            needs=frozenset(ids[need] for need in dag.dependencies[job] if need in ids),
        )
        for job in needed
    }

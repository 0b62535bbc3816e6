"""One training on several processes: `accelerate launch` around the same command.

What the processes say on standard error goes on as it comes. When one of them fails, the launcher
ends all and would print a page for each; here the first cause is told, in one message. No torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gapinit.errors import GapinitError

LAUNCHED = "GAPINIT_PROCESSES"
"""In the environment of the processes: how many there must be."""
REPORTS = "GAPINIT_PROCESS_REPORTS"
"""In the environment of the processes: the folder in which one that fails says why."""
_LAUNCHERS_OWN = re.compile(r"[IWEF]\d{4} .*torch/distributed/")
_EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
_PR_SET_PDEATHSIG = 1


def require_enough_samples(batch_size: int, processes: int) -> None:
    """Raise GapinitError where some process would never have anything to do."""
    if processes > batch_size:
        raise GapinitError(
            f"{processes} processes (--num-processes, training.num_processes) for a batch of "
            f"{batch_size} samples (--batch-size, training.batch_size): expected at most as many "
            "processes as samples. Take fewer processes or larger batches."
        )


def launch(arguments: Sequence[str], processes: int, device: str) -> None:
    """Run `gapinit` with `arguments` in several processes; raise GapinitError if one fails.

    On GPUs it claims as many for all of them (`gapinit.devices`) unless the device is named.
    """
    device = _claimed(processes, device)
    with tempfile.TemporaryDirectory(prefix="gapinit-processes-") as reports:
        environment = {**os.environ, LAUNCHED: str(processes), REPORTS: reports}
        if device == "cpu":
            environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        child = subprocess.Popen(
            _command(arguments, processes, device),
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=_end_with_parent,
        )
        assert child.stderr is not None, "a pipe was asked for"
        with _passed_on(child):
            said = _forward(child.stderr)
            status = child.wait()
        if status:
            raise GapinitError(_cause(Path(reports), said, processes, status))


@contextmanager
def reported() -> Iterator[None]:
    """In a process of several: leave the reason of a failure to the launcher, and end."""
    folder = os.environ.get(REPORTS)
    if folder is None or LAUNCHED not in os.environ:
        yield
        return
    try:
        yield
    except Exception as error:
        known = isinstance(error, GapinitError)
        report = {
            "rank": int(os.environ.get("RANK", "0")),
            "time": time.time(),
            "message": str(error) if known else None,
            "traceback": "" if known else traceback.format_exc(),
        }
        path = Path(folder, f"{report['rank']}.json")
        path.write_text(json.dumps(report), encoding="utf-8")
        sys.exit(1)


def _claimed(processes: int, device: str) -> str:
    """Return the kind of device, `cpu` or `cuda`; free GPUs are claimed if none is named."""
    if device in ("cpu", "cuda"):
        return device
    if device != "auto":
        raise GapinitError(
            f"--device {device}: names one device, and --num-processes {processes} takes several. "
            "Expected cpu, cuda (numbers 0, 1, ... of CUDA_VISIBLE_DEVICES) or auto."
        )
    from gapinit.devices import has_nvidia, take_gpus, visible_devices

    if not has_nvidia() or not visible_devices():
        return "cpu"
    take_gpus(processes)
    return "cuda"


def _command(arguments: Sequence[str], processes: int, device: str) -> list[str]:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    each = int(threads) if threads.isdecimal() else (os.cpu_count() or 1)
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0",
        "--num_cpu_threads_per_process", str(max(1, each // processes)),
        # On CPUs too: with --cpu it starts one process alone unless there is MPI.
        "--multi_gpu", "--module", "gapinit", *arguments, "--device", device,
    ]  # fmt: skip


def _end_with_parent() -> None:
    """Let the kernel end the launcher, and it its processes, when this process is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _passed_on(child: subprocess.Popen[str]) -> Iterator[None]:
    """End the processes when this one is told to end (Snakemake, Slurm, Ctrl-C)."""

    def end(number: int, frame: Any) -> None:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _forward(stream: IO[str]) -> str:
    """Pass on what the processes say; return what the launcher said about their end."""
    ended: list[str] = []
    for line in stream:
        if ended or "Traceback (most recent call last)" in line:
            ended.append(line)
        elif _LAUNCHERS_OWN.match(line):
            if line.startswith("E"):
                ended.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
    return "".join(ended)


def _cause(reports: Path, said: str, processes: int, status: int) -> str:
    """Return the first cause: a process's own message, a signal, or where it broke."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in reports.glob("*.json")]
    found.sort(key=lambda report: float(report["time"]))
    of = f"of the {processes} processes"
    for report in found:
        if report["message"] is not None:
            return str(report["message"])
    codes = [int(code) for code in _EXIT_CODE.findall(said)]
    for code in codes:
        if code < 0 and -code != signal.SIGTERM:
            name = signal.Signals(-code).name
            return (
                f"one {of} was ended by {name}, and the others with it; SIGKILL is most often "
                "memory that ran out. The same command goes on from the last checkpoint."
            )
    for report in found:
        text = str(report["traceback"]).rstrip()
        return f"process {report['rank']} {of} failed, and the others were ended:\n{text}"
    return f"`accelerate launch` failed (status {status}):\n{said[-4000:].rstrip()}"

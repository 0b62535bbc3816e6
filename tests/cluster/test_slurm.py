"""The whole small grid on a real Slurm, with the controlling Snakemake killed in the middle.

`make test-cluster` installs Slurm and the executor plugin and runs this. What is compared with a
run on this machine alone are the tables, byte for byte.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
CONFIGURATION = ["--configfile", str(ROOT / "config/test.yaml")]
spec = importlib.util.spec_from_file_location("private_slurm", Path(__file__).with_name("slurm.py"))
assert spec is not None and spec.loader is not None
slurm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slurm)

MISSING = slurm.why_not()
if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
    MISSING += f"{'; ' if MISSING else ''}not installed: Snakemake's executor plugin for Slurm"
if "GAPINIT_TEST_CLUSTER" not in os.environ:
    MISSING = "the whole workflow on a private Slurm takes a quarter of an hour"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING}: `make test-cluster` runs it"),
]


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Slurm]:
    # Sockets have short paths, and Slurm wants a folder whose parents belong to root.
    folder = Path(tempfile.mkdtemp(prefix="gapinit-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    private = slurm.Slurm(folder)
    try:
        private.start()
        yield private
    finally:
        for process in STARTED:
            process.kill()
        private.stop()
        shutil.rmtree(folder, ignore_errors=True)


def through_the_profile(cluster: slurm.Slurm, folder: Path) -> subprocess.Popen[bytes]:
    """Start the workflow through the profile, with what a cluster without accounting needs."""
    command = [
        PROGRAMS / "snakemake", "--snakefile", ROOT / "Snakefile", *CONFIGURATION,
        "--workflow-profile", ROOT / "workflow/profiles/slurm",
        "--slurm-no-account", "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10",
        "--seconds-between-status-checks", "3",
    ]  # fmt: skip
    log = (folder / "snakemake.log").open("ab")
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    STARTED.append(started)
    return started


def text(folder: Path) -> str:
    return (folder / "snakemake.log").read_text(encoding="utf-8", errors="replace")


def finished_runs(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.glob("results/test/4_train/runs/**/run.json")
    }


def test_a_killed_workflow_is_finished_by_a_second_call(
    cluster: slurm.Slurm, tmp_path: Path
) -> None:
    folder = tmp_path / "on a cluster"
    folder.mkdir()
    first = through_the_profile(cluster, folder)
    deadline = time.monotonic() + 1200
    # The middle: some runs are trained, and jobs are in the queue.
    while len(finished_runs(folder)) < 4 or not running(cluster):
        assert first.poll() is None, text(folder)[-4000:]
        assert time.monotonic() < deadline, text(folder)[-4000:]
        time.sleep(0.5)
    refused = cancel(cluster, folder)
    assert refused.returncode == 1 and "Snakemake still runs in" in refused.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert running(cluster), "the jobs of a killed Snakemake go on"
    stranger = cluster.output(
        "sbatch", "--parsable", "--output=/dev/null", "--mem=300", "--wrap", "sleep 600"
    ).strip()

    cancelled = cancel(cluster, folder)
    assert cancelled.returncode == 0, cancelled.stderr
    assert re.match(r"[1-9]\d* jobs cancelled: ", cancelled.stdout), cancelled.stdout
    assert running(cluster) == [stranger], "only this workflow's jobs are cancelled"
    cluster.output("scancel", stranger)
    kept = finished_runs(folder)

    second = through_the_profile(cluster, folder)
    assert second.wait(2400) == 0, text(folder)[-6000:]
    assert len(re.findall(r"SLURM run ID: gapinit_", text(folder))) == 2
    now = finished_runs(folder)
    assert all(now[path] == changed for path, changed in kept.items()), (
        "a finished run was repeated"
    )

    local = tmp_path / "on one machine"
    local.mkdir()
    command = [
        PROGRAMS / "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--cores",
        "2",
        "--quiet",
        "all",
    ]
    done = subprocess.run(
        [*command, *CONFIGURATION], cwd=local, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    tables = sorted(path.relative_to(local) for path in local.glob("results/test/6_tables/*"))
    assert len(tables) > 15
    for table in tables:
        if table.name != "costs.csv":
            assert (folder / table).read_bytes() == (local / table).read_bytes(), table


def running(cluster: slurm.Slurm) -> list[str]:
    return cluster.output("squeue", "-h", "-t", "RUNNING", "-o", "%A").split()


def cancel(cluster: slurm.Slurm, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "gapinit", "cluster", "cancel"],
        cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

"""GPUs on a shared machine: many processes, few devices, never two on one, whoever is killed.

Devices are names here. What a process does with one is to hold a witness: a POSIX record lock that
the kernel grants to one process only and that knows nothing of the locks under test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gapinit import devices
from gapinit.cli.options import device_name
from gapinit.errors import GapinitError

CARDS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb2222)
"""
WORKER = """
import fcntl, os, sys, time
from pathlib import Path
from gapinit import devices

folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
names = [f"GPU-{number}" for number in range(count)]
# Before the claim: a killed process's descriptors are closed in this order.
witnesses = {name: os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in names}
devices.visible_devices = lambda: dict(zip(names, names))
devices.POLL_SECONDS = 0.05
devices.claim_gpu()
name = os.environ["CUDA_VISIBLE_DEVICES"]
try:
    fcntl.lockf(witnesses[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("OVERLAP on", name, flush=True)
    sys.exit(3)
print("got", name, flush=True)
time.sleep(seconds)
os.close(witnesses[name])  # before Python releases the claim on its way out
"""


def start(folder: Path, count: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder), str(count), str(seconds)]
    environment = os.environ | {devices.FOLDER_VARIABLE: str(folder / "locks")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def first_line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def killed_once_it_holds(worker: subprocess.Popen[str]) -> bool:
    got = first_line(worker).startswith("got")
    worker.send_signal(signal.SIGKILL)
    return got


def test_no_two_processes_share_a_gpu_though_some_are_killed(tmp_path: Path) -> None:
    workers = [start(tmp_path, 2, 0.05) for _ in range(9)]
    stuck = [start(tmp_path, 2, 60) for _ in range(3)]
    with ThreadPoolExecutor() as pool:  # only the death of these frees their devices
        assert list(pool.map(killed_once_it_holds, stuck)) == [True] * len(stuck)
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), outputs
    assert {out.split()[1] for out, _ in outputs} == {"GPU-0", "GPU-1"}
    for worker in stuck:
        worker.communicate()


def test_a_waiting_process_says_so_and_takes_the_gpu_of_a_killed_one(tmp_path: Path) -> None:
    holder = start(tmp_path, 1, 60)
    assert first_line(holder) == "got GPU-0\n"
    waiting = start(tmp_path, 1, 0)
    assert waiting.stderr is not None
    message = waiting.stderr.readline()
    assert message.startswith("Waiting for a free GPU: other processes hold GPU-0 (locks in ")
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0] == "got GPU-0\n"
    holder.communicate()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Two GPUs that nvidia-smi lists and PyTorch believes in."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{CARDS}END\n")
    program.chmod(0o755)
    (tmp_path / "dev").mkdir()
    for number in (0, 1):
        (tmp_path / f"dev/nvidia{number}").touch()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(devices.FOLDER_VARIABLE, str(tmp_path / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "DEV", tmp_path / "dev")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    held: list[devices.FileLock] = []
    monkeypatch.setattr(devices, "_held", held)
    yield tmp_path
    for lock in held:
        lock.release()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, {"GPU-aaaa1111": "GPU-aaaa1111", "GPU-bbbb2222": "GPU-bbbb2222"}),
        ("0", {"0": "GPU-aaaa1111"}),
        ("GPU-bbbb2222,0", {"GPU-bbbb2222": "GPU-bbbb2222", "0": "GPU-aaaa1111"}),
        ("MIG-cccc4444", {"MIG-cccc4444": "MIG-cccc4444"}),
        ("0,-1,1", {"0": "GPU-aaaa1111"}),
        ("0,7,1", {"0": "GPU-aaaa1111"}),
        ("NoDevFiles", {}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_only_what_a_scheduler_left_visible_is_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: dict[str, str]
) -> None:
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert devices.visible_devices() == expected


def test_device_auto_points_cuda_at_the_claimed_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPU-aaaa1111", "GPU-bbbb2222"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert device_name("auto") == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == name


def test_a_gpu_that_pytorch_cannot_use_is_given_back(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for _ in range(3):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert device_name("auto") == "cpu"


def test_a_named_device_and_a_machine_without_gpu_cost_no_lock(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_name("cuda:1") == "cuda:1"
    monkeypatch.setattr(devices, "DEV", machine / "empty")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name("auto") == "cpu"
    assert not (machine / "locks").exists()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_lock_folder_that_is_a_link_is_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "theirs").mkdir()
    (machine / "link").symlink_to(machine / "theirs")
    monkeypatch.setenv(devices.FOLDER_VARIABLE, str(machine / "link"))
    with pytest.raises(GapinitError, match="belongs to another user or is a link"):
        devices.claim_gpu()

"""The GPU pool: many processes, few devices, never more on one than allowed, whoever is killed.

Devices are names here, and what a process does with one is to hold a witness: a POSIX record lock
that the kernel grants to one process only and that knows nothing of the pool's own locks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gapinit import devices as gpu_pool
from gapinit.cli.options import device_name
from gapinit.devices import Device, claim, visible_devices
from gapinit.errors import GapinitError

CARDS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb2222)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc3333)
  MIG 3g.40gb     Device  1: (UUID: MIG-cccc4444)
"""
WORKER = """
import fcntl, os, sys, time
from pathlib import Path
from gapinit.gpu_pool import Device, claim

folder, seconds = Path(sys.argv[1]), float(sys.argv[4])
devices, per_gpu = int(sys.argv[2]), int(sys.argv[3])
names = [f"fake-{number}" for number in range(devices)]
# Before the claim: a killed process's descriptors are closed in this order.
witnesses = {
    name: [os.open(folder / f"witness-{name}-{k}", os.O_RDWR | os.O_CREAT) for k in range(per_gpu)]
    for name in names
}
known = [Device(name, name) for name in names]
held = claim(known, per_gpu=per_gpu, folder=folder / "locks", poll=0.1)
(device,) = held.devices
for witness in witnesses[device.name]:
    try:
        fcntl.lockf(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        continue
else:
    print("OVERLAP on", device.name, flush=True)
    sys.exit(3)
print("got", device.name, flush=True)
time.sleep(seconds)
os.close(witness)  # before Python lets go of the claim on its way out
"""


def start(folder: Path, devices: int, per_gpu: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder), str(devices), str(per_gpu), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_once_it_holds(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    worker.send_signal(signal.SIGKILL)
    return line


@pytest.mark.slow
@pytest.mark.parametrize("per_gpu", [1, 2])
def test_fifty_processes_on_three_gpus_never_share_one_though_some_are_killed(
    tmp_path: Path, per_gpu: int
) -> None:
    workers = [start(tmp_path, 3, per_gpu, 0.05) for _ in range(40)]
    # These would hold their device for ever: only their death frees it.
    stuck = [start(tmp_path, 3, per_gpu, 60) for _ in range(10)]
    with ThreadPoolExecutor(len(stuck)) as pool:
        lines = list(pool.map(kill_once_it_holds, stuck))
    assert all(line.startswith("got") for line in lines), lines
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), outputs
    assert all("OVERLAP" not in out for out, _ in outputs)
    assert [worker.wait() for worker in stuck] == [-signal.SIGKILL] * len(stuck)
    used = {out.split()[1] for out, _ in outputs}
    assert used == {"fake-0", "fake-1", "fake-2"}


def test_a_waiting_process_names_the_holder_and_goes_on_when_it_is_killed(tmp_path: Path) -> None:
    holder = start(tmp_path, 1, 1, 60)
    assert holder.stdout is not None and holder.stdout.readline() == "got fake-0\n"
    waiting = start(tmp_path, 1, 1, 0)
    assert waiting.stderr is not None and waiting.stdout is not None
    message = waiting.stderr.readline()
    assert message.startswith(f"Waiting for a free GPU: fake-0 held by process {holder.pid} since")
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0] == "got fake-0\n"
    assert waiting.returncode == 0


def devices(*names: str) -> list[Device]:
    return [Device(name, name) for name in names]


def claim_now(folder: Path, names: list[Device], **options: int) -> list[str] | None:
    """Claim and keep what is free this moment; None: it would have waited."""
    taken, _ = gpu_pool._try_claim(
        names, options.get("count", 1), options.get("per_gpu", 1), folder
    )
    if taken is None:
        return None
    KEPT.append(taken)
    return [device.name for device in taken.devices]


KEPT: list[gpu_pool.Claim] = []


def test_several_gpus_are_claimed_together_or_not_at_all(tmp_path: Path) -> None:
    three = devices("a", "b", "c")
    assert claim_now(tmp_path, three, count=2) == ["a", "b"]
    assert claim_now(tmp_path, three, count=2) is None
    assert claim_now(tmp_path, three) == ["c"], "the failed claim of two must hold none"
    assert claim_now(tmp_path, three) is None


def test_sharing_holds_only_where_every_holder_allows_it(tmp_path: Path) -> None:
    both = devices("a", "b")
    assert claim_now(tmp_path, both, per_gpu=2) == ["a"]
    assert claim_now(tmp_path, both, per_gpu=2) == ["b"], "an empty device goes before a shared one"
    assert claim_now(tmp_path, both, per_gpu=1) is None
    assert claim_now(tmp_path, both, per_gpu=2) == ["a"]
    assert claim_now(tmp_path, devices("z"), per_gpu=1) == ["z"]
    assert claim_now(tmp_path, devices("z"), per_gpu=8) is None
    for one in KEPT:
        one.release()
    assert claim_now(tmp_path, both, per_gpu=1) == ["a"]


def test_more_gpus_than_there_are_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    with pytest.raises(GapinitError, match="4 GPUs are asked for, and 1 are there"):
        claim(devices("a"), count=4, folder=tmp_path)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [("GPU-aaaa1111", "GPU-aaaa1111"), ("MIG-cccc3333", "MIG-cccc3333"),
                ("MIG-cccc4444", "MIG-cccc4444")]),
        ("0", [("0", "GPU-aaaa1111")]),
        ("1", [("1", "MIG-cccc3333")]),
        ("GPU-aaaa", [("GPU-aaaa", "GPU-aaaa1111")]),
        ("MIG-cccc4444,0", [("MIG-cccc4444", "MIG-cccc4444"), ("0", "GPU-aaaa1111")]),
        ("0,GPU-aaaa1111", [("0", "GPU-aaaa1111")]),
        ("0,-1,1", [("0", "GPU-aaaa1111")]),
        ("0,7,1", [("0", "GPU-aaaa1111")]),
        ("", []),
        ("-1", []),
    ],
)  # fmt: skip
def test_only_what_a_scheduler_left_visible_is_used(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: list[tuple[str, str]]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = [(device.name, device.key) for device in visible_devices(CARDS)]
    assert found == expected


def test_the_same_number_in_two_scheduler_jobs_may_be_two_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    keys = set()
    for job in ("17", "18"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        keys |= {device.key for device in visible_devices("")}
    assert len(keys) == 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two cards that nvidia-smi lists and PyTorch believes in."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-a)'\necho 'GPU 1: B (UUID: GPU-b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(gpu_pool.FOLDER_VARIABLE, str(tmp_path / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpu_pool, "has_nvidia", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_pool, "_taken", [])
    gpu_pool._nvidia_smi.cache_clear()
    yield tmp_path / "locks"
    gpu_pool._nvidia_smi.cache_clear()


def test_device_auto_points_cuda_at_the_claimed_card(machine: Path) -> None:
    assert device_name("auto") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert json.loads((machine / "GPU-a.0.json").read_text())["pid"] == os.getpid()
    del os.environ["CUDA_VISIBLE_DEVICES"]
    assert device_name("auto") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_a_card_that_pytorch_cannot_use_is_given_back(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name("auto") == "cpu"
    assert claim_now(machine, devices("GPU-a")) == ["GPU-a"]


def test_a_named_device_and_a_machine_without_gpu_cost_no_lock(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_name("cuda:1") == "cuda:1"
    monkeypatch.setattr(gpu_pool, "has_nvidia", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name("auto") == "cpu"
    assert not machine.exists()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_wrong_share_is_one_message(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu_pool.PER_GPU_VARIABLE, "many")
    with pytest.raises(GapinitError, match="GAPINIT_JOBS_PER_GPU=many: expected a whole number"):
        device_name("auto")


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv(gpu_pool.FOLDER_VARIABLE, str(tmp_path / "link"))
    with pytest.raises(GapinitError, match="belongs to another user or is a link"):
        gpu_pool.lock_folder()

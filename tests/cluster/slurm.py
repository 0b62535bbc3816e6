"""A private Slurm on this machine, on loopback: several nodes, each with a fake GPU.

Debian's munged, slurmctld and one slurmd a node, everything below one folder, no systemd. The GPU
is a character device like /dev/null, so that Slurm counts it and sets CUDA_VISIBLE_DEVICES. Needs
root (for the devices). No accounting, as on many small clusters.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "munged", "munge")
CLIENTS = ("srun", "sbatch", "sacct", "sacctmgr", "squeue", "sinfo", "scontrol", "scancel")
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

SLURM_CONF = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
KillWait=5
# Status by squeue needs ended jobs to stay known.
MinJobAge=86400
PropagateResourceLimits=NONE
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} \
SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:fake:1 \
State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=200 State=UP
"""
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n"


def why_not() -> str:
    """Return what keeps a private Slurm from being started here; empty: nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if os.getuid() == 0 else "not root"


class Slurm:
    """The cluster: started by `start`, its environment in `environment`, ended by `stop`."""

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 16, memory: int = 32000) -> None:
        # munged wants a socket's path to be short, and slurmctld a folder that only root writes.
        self.folder, self.nodes, self._cpus, self._memory = folder, nodes, cpus, memory
        self._processes: list[subprocess.Popen[bytes]] = []
        programs = folder / "bin"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] = f"{programs}:{SYSTEM_PATH}"

    def start(self) -> None:
        """Start the daemons and wait until every node is idle."""
        folder = self.folder
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(self.nodes + 1)
        for name in ("bin", "state", *(f"spool-n{node}" for node in self._numbers())):
            (folder / name).mkdir(parents=True, exist_ok=True)
        gres = []
        for node in self._numbers():
            device = folder / f"gpu-n{node}"
            subprocess.run(["mknod", "-m", "666", device, "c", "1", "3"], check=True)
            gres.append(f"NodeName=n{node} Name=gpu Type=fake File={device}\n")
        (folder / "gres.conf").write_text("".join(gres))
        (folder / "cgroup.conf").write_text(CGROUP_CONF)
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=host, folder=folder, port=ports[0], nodes=self.nodes, cpus=self._cpus,
                memory=self._memory, first=ports[1], last=ports[-1],
            )
        )  # fmt: skip
        # Snakemake's job step strips SLURM_* before its srun, so the clients know it themselves.
        for name in CLIENTS:
            found = shutil.which(name, path=SYSTEM_PATH)
            wrapper = folder / "bin" / name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {found} "$@"\n')
            wrapper.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self._wait(lambda: self._answers("munge", "-S", f"{folder}/munge.sock", "-n"))
        self._daemon("slurmctld", "-D")
        self._wait(lambda: "UP" in self.output("scontrol", "ping"))
        for node in self._numbers():
            self._daemon("slurmd", "-D", "-N", f"n{node}")
        self._wait(lambda: self.output("sinfo", "-hN", "-o", "%T").split() == ["idle"] * self.nodes)

    def stop(self) -> None:
        """Cancel every job and end the daemons, by the processes that this object started."""
        jobs = self.output("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.output("scancel", *jobs)
            deadline = time.monotonic() + 20
            while self.output("squeue", "-h", "-o", "%A").split() and time.monotonic() < deadline:
                time.sleep(0.3)
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()

    def output(self, *command: str) -> str:
        """Return what one of Slurm's programs says, or nothing if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def _numbers(self) -> range:
        return range(1, self.nodes + 1)

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, timeout=10, check=False
        )
        return done.returncode == 0

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("ab")
        self._processes.append(
            subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )
        )  # fmt: skip

    def _wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            dead = [one.args for one in self._processes if one.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = {path.name: path.read_text()[-800:] for path in self.folder.glob("*.log")}
                raise RuntimeError(f"the private Slurm does not come up (ended: {dead}): {logs}")
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Return ports in a row that nothing listens on."""
    for first in range(20000 + os.getpid() % 10000, 60000, count):
        ports = list(range(first, first + count))
        sockets = []
        try:
            for port in ports:
                one = socket.socket()
                sockets.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return ports
    raise RuntimeError("no free ports")

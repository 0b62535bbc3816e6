"""`gapinit doctor`: the downloads, disk space, memory and time that a configuration needs.

The doctor starts no job, downloads nothing and writes nothing. It computes sizes from the
configuration, the architecture files and `config/sizes.yaml`. Its output marks every assumption.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gapinit.backbones import PRETRAINED
from gapinit.backbones.facts import Facts, backbone_facts
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import find_java
from gapinit.progress import show_bytes
from gapinit.workflow.doctor import sources
from gapinit.workflow.doctor.disk import Need, disk_needs
from gapinit.workflow.doctor.gpu import TFLOPS, Work, gpu_work
from gapinit.workflow.doctor.jobs import Case, Jobs, plan_jobs
from gapinit.workflow.doctor.sizes import dataset_size, read_sizes
from gapinit.workflow.doctor.sources import File, Weights
from gapinit.workflow.plan import Plan


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Disk:
    """The bytes that a plan writes to one file system, and the free bytes on it."""

    path: Path
    bytes: int
    free: int


@dataclass
class Diagnosis:
    """All results of `gapinit doctor` for a plan."""

    plan: Plan
    jobs: Jobs
    tflops: float
    files: list[File]
    weights: list[Weights]
    needs: list[Need]
    disks: list[Disk]
    work: list[Work]
    gpus: list[Gpu]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(plan: Plan, tflops: float | None = None) -> Diagnosis:
    """Return what a plan needs and which of it is missing."""
    folder, jobs, rate = plan.folder, plan_jobs(plan), tflops or TFLOPS
    known = read_sizes(folder)
    sizes = {name: dataset_size(plan, name, known) for name in jobs.datasets}
    facts = _facts(jobs.backbones, folder)

    def case_of(backbone: str, dataset: str) -> Case | None:
        if backbone not in facts:
            return None
        return Case(plan, backbone, dataset, facts[backbone], sizes[dataset])

    files = sources.dataset_files(plan, jobs, folder, known)
    weights = [sources.weights(plan, name, folder) for name in jobs.backbones]
    needs = disk_needs(plan, jobs, case_of)
    disks = _disks(plan, files, weights, needs)
    work = gpu_work(jobs, case_of, rate)
    diagnosis = Diagnosis(plan, jobs, rate, files, weights, needs, disks, work, _gpus())
    diagnosis.notes += [
        f"dataset '{name}': size unknown, left out of the sums"
        for name, size in sizes.items()
        if size is None
    ]
    diagnosis.notes += [
        f"backbone '{name}': no file in {folder}/architectures/, left out of the sums"
        for name in jobs.backbones
        if name not in facts
    ]
    _find_missing(diagnosis)
    return diagnosis


def _facts(backbones: Sequence[str], folder: Path) -> dict[str, Facts]:
    """Return the shapes of backbones that have an architecture file or are pretrained here."""
    found = {}
    for name in backbones:
        family = read_yaml(folder / "backbones" / f"{name}.yaml").get("family")
        if family in PRETRAINED or (folder / "architectures" / f"{name}.yaml").is_file():
            found[name] = backbone_facts(name, folder)
    return found


def _disks(
    plan: Plan, files: Sequence[File], published: Sequence[Weights], needs: Sequence[Need]
) -> list[Disk]:
    """Return each file system with the bytes that the plan writes to it."""
    places = [
        *((Path(plan.config.data), file.written) for file in files),
        *((sources.hub_cache(), one.bytes or 0) for one in published if one.state == "to fetch"),
        *((Path(plan.config.results), 0 if need.there else need.bytes) for need in needs),
    ]
    totals: dict[int, int] = {}
    paths: dict[int, Path] = {}
    for path, count in places:
        existing = path.absolute()
        while not existing.is_dir():
            existing = existing.parent
        device = existing.stat().st_dev
        totals[device] = totals.get(device, 0) + count
        paths.setdefault(device, existing)
    return [
        Disk(path, totals[device], shutil.disk_usage(path).free) for device, path in paths.items()
    ]


def _gpus() -> list[Gpu]:
    """Return the GPUs that PyTorch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(card.name, card.total_memory) for card in cards]


def _find_missing(found: Diagnosis) -> None:
    """Add to a diagnosis everything that would stop the workflow."""
    missing = found.missing
    published = [one for one in found.weights if one.state != "made here"]
    if published and not found.gpus:
        missing.append("GPU: none that PyTorch can use; without one these backbones take weeks")
    largest = max((gpu.bytes for gpu in found.gpus), default=None)
    for work in found.work:
        if largest is not None and work.memory > largest:
            missing.append(
                f"GPU memory: {work.stage} of {work.backbone} needs about "
                f"{show_bytes(work.memory)}, the largest GPU has {show_bytes(largest)}"
            )
    for disk in found.disks:
        if disk.bytes > disk.free:
            missing.append(
                f"disk: the workflow writes {show_bytes(disk.bytes)} at {disk.path}, "
                f"{show_bytes(disk.free)} free"
            )
    missing += [file.instructions for file in found.files if file.state == "by hand"]
    missing += [
        f"backbone '{one.backbone}': its 'folder' contains no config.json"
        for one in published
        if one.state == "no folder"
    ]
    fetched = [one for one in published if one.state == "to fetch"]
    missing += [
        f"token: {one.repository} requires a licence: accept '{one.licence}' on the Hugging Face "
        "hub, then set HF_TOKEN or run `hf auth login`"
        for one in fetched
        if one.gated and not sources.hub_token()
    ]
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if fetched and offline:
        found.notes.append("HF_HUB_OFFLINE is set; the workflow ignores it and downloads weights")
    if found.jobs.predictions:
        try:
            find_java()
        except GapinitError as error:
            missing.append(str(error))

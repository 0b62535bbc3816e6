"""`gapinit doctor`: what a configuration will download, write, hold in memory and take in time.

Nothing is started, fetched or written. Sizes come from the configuration, from the architecture
files and from `config/sizes.yaml`; what rests on an assumption is said to.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.progress import show_bytes
from gapinit.workflow.plan import Plan, make_plan

if TYPE_CHECKING:
    from gapinit.backbones.facts import Facts
    from gapinit.workflow.doctor.disk import Need
    from gapinit.workflow.doctor.gpu import Estimate, Work
    from gapinit.workflow.doctor.jobs import Jobs
    from gapinit.workflow.doctor.sources import File, Weights


@dataclass(frozen=True)
class Gpu:
    """A card that is there."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Disk:
    """What is written to one file system, and what is free on it."""

    path: Path
    bytes: int
    free: int


@dataclass
class Diagnosis:
    """Everything that `gapinit doctor` says of a plan."""

    plan: Plan
    jobs: Jobs
    tflops: float
    files: list[File]
    weights: list[Weights]
    needs: list[Need]
    disks: list[Disk]
    estimate: Estimate
    work: list[Work]
    gpus: list[Gpu]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def planned(folder: Path, configfile: Path | None, given: Sequence[str] = ()) -> Plan:
    """Return the plan of a configuration, merged as the Snakefile merges it.

    `default.yaml` first, then the file, then `KEY=VALUE`; mappings are merged key by key.
    """
    sources = [folder / "default.yaml", *([configfile] if configfile is not None else [])]
    content: dict[str, Any] = {}
    for path in sources:
        content = merged(content, read_yaml(path))
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise GapinitError(f"--config {text}: expected KEY=VALUE")
        try:
            content = merged(content, {key: yaml.safe_load(value)})
        except yaml.YAMLError:
            raise GapinitError(f"--config {text}: the value is not valid YAML") from None
    return make_plan(content, folder, sources)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `over`, mappings within it likewise."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = merged(known, value)
        result[key] = value
    return result


def examine(plan: Plan, tflops: float | None = None) -> Diagnosis:
    """Return what a plan needs and what of it is missing."""
    from gapinit.workflow.doctor.disk import disk_needs
    from gapinit.workflow.doctor.gpu import TFLOPS, Estimate
    from gapinit.workflow.doctor.jobs import plan_jobs
    from gapinit.workflow.doctor.sizes import dataset_size, read_sizes
    from gapinit.workflow.doctor.sources import dataset_files, weights

    folder, jobs = plan.folder, plan_jobs(plan)
    known = read_sizes(folder)
    found = {name: dataset_size(plan, name, known) for name in jobs.datasets}
    sizes = {name: size for name, size in found.items() if size is not None}
    facts = _facts(jobs.backbones, folder)
    needs = disk_needs(plan, jobs, facts, sizes)
    files = dataset_files(plan, jobs, folder, known)
    published = [weights(plan, name, folder) for name in jobs.backbones]
    rate = TFLOPS if tflops is None else tflops
    estimate = Estimate(plan, jobs, facts, sizes, rate)
    diagnosis = Diagnosis(
        plan=plan,
        jobs=jobs,
        tflops=rate,
        files=files,
        weights=published,
        needs=needs,
        disks=_disks(plan, files, published, needs),
        estimate=estimate,
        work=estimate.work(),
        gpus=_gpus(),
    )
    diagnosis.notes += [
        f"dataset '{name}': size not known, left out" for name in found if name not in sizes
    ]
    diagnosis.notes += [
        f"backbone '{name}': no file in {folder}/architectures/, its sizes are left out"
        for name in jobs.backbones
        if name not in facts
    ]
    _find_missing(diagnosis)
    return diagnosis


def _facts(backbones: Sequence[str], folder: Path) -> dict[str, Facts]:
    """Return the shapes of the backbones that have an architecture file or are made here."""
    from gapinit.backbones import PRETRAINED
    from gapinit.backbones.shapes import backbone_facts

    found = {}
    for name in backbones:
        family = read_yaml(folder / "backbones" / f"{name}.yaml").get("family")
        if family in PRETRAINED or (folder / "architectures" / f"{name}.yaml").is_file():
            found[name] = backbone_facts(name, folder)
    return found


def _disks(
    plan: Plan, files: Sequence[File], published: Sequence[Weights], needs: Sequence[Need]
) -> list[Disk]:
    """Return what is written to each file system, and what is free there."""
    from gapinit.workflow.doctor.sources import hub_cache

    places = [
        *((Path(plan.config.data), _to_write(file)) for file in files),
        *((hub_cache(), one.bytes or 0) for one in published if one.state == "to fetch"),
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


def _to_write(file: File) -> int:
    """Return what a download leaves on disk: the archive, which is kept, and what is in it."""
    fetched = (file.bytes or 0) if file.state != "there" else 0
    return fetched + file.unpacked


def _gpus() -> list[Gpu]:
    """Return the cards that PyTorch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(card.name, card.total_memory) for card in cards]


def _find_missing(found: Diagnosis) -> None:
    """Add what stands in the way, and what is worth knowing, to a diagnosis."""
    from gapinit.workflow.doctor.sources import hub_token, offline

    missing, notes = found.missing, found.notes
    published = [one for one in found.weights if one.state != "made here"]
    if published and not found.gpus:
        missing.append("GPU: none that PyTorch can use; these backbones take weeks without")
    largest = max((gpu.bytes for gpu in found.gpus), default=None)
    for work in found.work:
        if largest is not None and work.memory > largest:
            missing.append(
                f"GPU memory: {work.stage} of {work.backbone} needs about "
                f"{show_bytes(work.memory)}, the largest card has {show_bytes(largest)}"
            )
    for disk in found.disks:
        if disk.bytes > disk.free:
            missing.append(
                f"disk: {show_bytes(disk.bytes)} to be written at {disk.path}, "
                f"{show_bytes(disk.free)} free"
            )
    missing += [file.instructions for file in found.files if file.state == "by hand"]
    fetched = [one for one in published if one.state == "to fetch"]
    for one in published:
        if one.state == "no folder":
            missing.append(f"backbone '{one.backbone}': its 'folder' holds no config.json")
    for one in fetched:
        if one.gated and not hub_token():
            missing.append(
                f"token: {one.repository} is behind the licence '{one.licence}': accept it on the "
                "hub, then set HF_TOKEN or run `hf auth login`"
            )
    if fetched and offline():
        notes.append("HF_HUB_OFFLINE is set: the workflow fetches weights all the same")
    if found.jobs.predictions:
        _find_java(missing)


def _find_java(missing: list[str]) -> None:
    from gapinit.evaluate.metrics.java import find_java

    try:
        find_java()
    except GapinitError as error:
        missing.append(str(error))

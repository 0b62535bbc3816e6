"""The downloads of a plan: files of datasets and published weights. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gapinit.backbones import PRETRAINED
from gapinit.backbones.architecture import VALUE_BYTES, Architecture
from gapinit.backbones.facts import architecture_facts
from gapinit.backbones.hub import HubSettings
from gapinit.config.yaml_files import read_settings
from gapinit.data.downloads import Download, instructions, missing_paths, read_downloads
from gapinit.workflow.doctor.jobs import Jobs
from gapinit.workflow.doctor.sizes import DownloadSize, Sizes
from gapinit.workflow.plan import Plan

WEIGHTS_THERE = 0.95
"""Weights count as downloaded if at least this share of the expected bytes is on disk."""


@dataclass(frozen=True)
class File:
    """A file to download, and the datasets that read it."""

    name: str
    datasets: list[str]
    bytes: int | None
    """Size of the download; None: unknown."""
    unpacked: int
    known: bool
    """True if `downloads.yaml` has the exact size; else `bytes` is rounded up."""
    state: str
    """`there`, `to fetch`, or `by hand`."""
    instructions: str = ""

    @property
    def written(self) -> int:
        """Return the bytes to write: the archive, which is kept, and its content."""
        return self.unpacked + (0 if self.state == "there" else self.bytes or 0)


@dataclass(frozen=True)
class Weights:
    """A backbone's weights."""

    backbone: str
    repository: str
    bytes: int | None
    licence: str
    gated: bool
    state: str
    """`made here`, `there`, `to fetch`, or `no folder`."""


def dataset_files(plan: Plan, jobs: Jobs, folder: Path, sizes: Sizes) -> list[File]:
    """Return the downloads of all datasets that the jobs read, each once."""
    table = read_downloads(Path(plan.config.downloads or folder / "downloads.yaml"))
    readers: dict[str, list[str]] = {}
    for dataset in jobs.datasets:
        for name in plan.retrieved(dataset):
            readers.setdefault(name, []).append(dataset)
    data = Path(plan.config.data)
    return [
        _file(name, table[name], datasets, data, sizes.downloads.get(name, DownloadSize()))
        for name, datasets in readers.items()
        if name in table
    ]


def _file(
    name: str, download: Download, datasets: list[str], data: Path, size: DownloadSize
) -> File:
    count = download.bytes or size.bytes
    unpacked = size.unpacked if size.unpacked is not None else (count or 0)
    state, text = "to fetch", ""
    stamped = (data / "unpacked" / f"{name}.json").is_file()
    if download.manual is not None:
        missing = missing_paths(download, data)
        state = "by hand" if missing else "there"
        text = instructions(name, download, data) if missing else ""
    elif stamped or (data / "downloads" / download.file_name).is_file():
        state, unpacked = "there", 0 if stamped else unpacked
    return File(name, datasets, count, unpacked, download.bytes is not None, state, text)


def weights(plan: Plan, name: str, folder: Path) -> Weights:
    """Return a backbone's weights; the bytes are those of the published dtype."""
    if plan.backbone_setting(name, "family") in PRETRAINED:
        return Weights(name, "", 0, "", False, "made here")
    settings = read_settings(folder / "backbones" / f"{name}.yaml", HubSettings)
    known = folder / "architectures" / f"{name}.yaml"
    if not known.is_file():
        return Weights(name, settings.repository, None, "", False, _state(plan, settings, 0))
    it = read_settings(known, Architecture)
    count = architecture_facts(it, name).parameters * VALUE_BYTES[it.dtype]
    state = _state(plan, settings, count)
    return Weights(name, settings.repository, count, it.licence, it.gated, state)


def _state(plan: Plan, settings: HubSettings, count: int) -> str:
    made = Path(plan.config.results) / "1_backbones" / settings.name / "config.json"
    if made.is_file():
        return "there"
    if settings.folder is not None:
        return "there" if (settings.folder / "config.json").is_file() else "no folder"
    snapshots = hub_cache() / f"models--{settings.repository.replace('/', '--')}" / "snapshots"
    # One complete revision is enough. Files are links into the cache.
    for snapshot in sorted(snapshots.glob("*")):
        here = sum(file.stat().st_size for file in snapshot.glob("*.safetensors") if file.exists())
        if here and here >= WEIGHTS_THERE * count:
            return "there"
    return "to fetch"


def hub_cache() -> Path:
    """Return the cache folder of the Hugging Face hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hub_token() -> bool:
    """Return True if HF_TOKEN or the file of `hf auth login` has a token for the hub."""
    from huggingface_hub import get_token

    return bool(get_token())

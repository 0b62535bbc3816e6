"""`gapinit verify`: compare every file of a results folder with its recorded checksum.

Each stage records the SHA-256 of its files (`gapinit.artifacts.digests`). `verify` computes them
again: for the configuration's folder, and for the datasets and backbones that it shares with other
configurations. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.artifacts.digests import LISTING, is_record, read_listing, sha256
from gapinit.data.manifest import IMAGES
from gapinit.errors import GapinitError

NOT_CHECKED = ("logs", "benchmarks")
"""Folders without results: logs and the timings that Snakemake writes."""
SNAKEMAKE = ".snakemake_timestamp"
TRACES = {
    "1_data": ("5_evaluate/features/*/{}.h5", "4_train/trunk/*/{}/*.h5"),
    "1_backbones": ("2_states/{}/*.h5", "5_evaluate/features/{}/*.h5"),
}
"""Files that exist if a configuration has used a dataset or a backbone."""


@dataclass
class Verdict:
    """Files with a wrong checksum, missing files, files without checksum; number of intact ones."""

    folders: list[Path] = field(default_factory=list)
    intact: int = 0
    altered: dict[Path, str] = field(default_factory=dict)
    missing: dict[Path, str] = field(default_factory=dict)
    unknown: dict[Path, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Return True if every file is intact and no other file exists."""
        return not (self.altered or self.missing or self.unknown)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON for programs."""
        found = {"altered": self.altered, "missing": self.missing, "unknown": self.unknown}
        return {
            "clean": self.clean,
            "folders": [str(path) for path in self.folders],
            "intact": self.intact,
            **{
                kind: [{"file": str(path), "reason": why} for path, why in sorted(paths.items())]
                for kind, paths in found.items()
            },
        }


def verify_results(results: Path) -> Verdict:
    """Compare every file of one configuration's results with its checksum.

    `results`: `results/<name>`. The datasets and backbones that its `configuration.json` names, in
    `results/1_data` and `results/1_backbones`, are verified, too. Raises GapinitError for a folder
    without any checksum.
    """
    results = Path(results)
    if not results.is_dir():
        raise GapinitError(f"{results}: no such folder (expected one like results/scenes)")
    verdict = Verdict([results])
    verdict.folders += dict.fromkeys(_shared(results, verdict))
    for folder in verdict.folders:
        _verify(folder, verdict)
    if not verdict.intact and verdict.clean:
        raise GapinitError(
            f"{results}: nothing to verify here, expected a folder of results like results/scenes"
        )
    return verdict


def _shared(results: Path, verdict: Verdict) -> Iterator[Path]:
    """Yield the folders of the datasets and backbones that a configuration uses."""
    path = results / "configuration.json"
    if not path.is_file():
        verdict.missing[path] = "it names the datasets and backbones of these results"
        return
    try:
        content = read_json(path)
        backbones = [content["backbone"], *content.get("backbones", {}).values()]
        datasets = [name for name in content["datasets"].values() if name]
    except (GapinitError, KeyError, TypeError, AttributeError) as error:
        verdict.altered[path] = f"not a checked configuration ({type(error).__name__}: {error})"
        return
    # A configuration does not name the datasets on which its backbones were pretrained.
    datasets += [path.name for path in sorted(results.parent.glob("1_data/*-pretraining"))]
    for stage, names in (("1_backbones", backbones), ("1_data", datasets)):
        for name in map(str, names):
            folder = results.parent / stage / name
            # A configuration may name backbones and datasets that its tables do not use.
            traces = [trace.format(escape(name)) for trace in TRACES[stage]]
            if folder.is_dir():
                yield folder
            elif name == content["backbone"] or any(any(results.glob(it)) for it in traces):
                verdict.missing[folder] = "the configuration names it"


def _verify(folder: Path, verdict: Verdict) -> None:
    files, records = _files(folder)
    expected: dict[Path, tuple[Path, str]] = {}
    # A file's own checksum is newer than the one in its folder's list, so it is read later.
    for place in sorted(records, key=lambda record: record.name != LISTING):
        try:
            listed = read_listing(place)
        except OSError as error:
            verdict.altered[place] = f"cannot be read ({error.strerror})"
            continue
        for name, said in listed.items():
            expected[Path(os.path.normpath(place.parent / name))] = (place, said)
    for path, (place, said) in expected.items():
        _compare(path, place, said, verdict)
    for path in files:
        if path not in expected:
            verdict.unknown[path] = "no stage recorded it"
        if path.name == IMAGES:
            _verify_images(path, verdict)


def _verify_images(listing: Path, verdict: Verdict) -> None:
    """Verify the images of a dataset, which may be in a folder of the user."""
    try:
        root = read_json(listing.with_name("manifest.json"))["root"]
    except (GapinitError, KeyError, TypeError):
        return  # the verdict on the manifest itself names the error
    for name, said in read_listing(listing).items():
        path = Path(os.path.normpath(listing.parent / str(root) / name))
        _compare(path, listing, said, verdict)


def _compare(path: Path, place: Path, said: str, verdict: Verdict) -> None:
    if path in verdict.altered or path in verdict.missing:
        return
    if not path.is_file():
        verdict.missing[path] = f"{place} names it"
        return
    try:
        found = sha256(path)
    except OSError as error:
        verdict.altered[path] = f"cannot be read ({error.strerror})"
        return
    if found == said:
        verdict.intact += 1
    else:
        verdict.altered[path] = f"its SHA-256 is not the one in {place}"


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the checksum files below a folder; links are not followed."""
    files: list[Path] = []
    records: list[Path] = []
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in NOT_CHECKED]
        for path in (Path(place) / name for name in names if name != SNAKEMAKE):
            if not path.is_symlink():
                (records if is_record(path) else files).append(path)
    return sorted(files), sorted(records)

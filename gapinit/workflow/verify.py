"""`gapinit verify`: whether a results folder still holds what was written, file by file.

Every artifact has the SHA-256 that its stage recorded (`gapinit.artifacts.digests`). All of them
are computed again: of the configuration's own folder and of the datasets and backbones that it
shares with others. No torch.
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
"""Folders of what is no result: logs and Snakemake's own timings."""
SNAKEMAKE = ".snakemake_timestamp"
TRACES = {
    "1_data": ("5_evaluate/features/*/{}.h5", "4_train/trunk/*/{}/*.h5"),
    "1_backbones": ("2_states/{}/*.h5", "5_evaluate/features/{}/*.h5"),
}
"""What a dataset or a backbone leaves where it was used."""


@dataclass
class Verdict:
    """What was found: paths by what is wrong with them, and how many files are as written."""

    folders: list[Path] = field(default_factory=list)
    intact: int = 0
    altered: dict[Path, str] = field(default_factory=dict)
    missing: dict[Path, str] = field(default_factory=dict)
    unknown: dict[Path, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Return whether everything is as it was written, and nothing else is there."""
        return not (self.altered or self.missing or self.unknown)

    def as_json(self) -> dict[str, Any]:
        """Return the verdict for programs."""
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
    """Compute the digest of every file of one configuration's results again.

    `results`: `results/<name>`. What its `configuration.json` names in `1_data` and `1_backbones`
    beside it is verified as well. Raises GapinitError for a folder without any record.
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
    """Yield the datasets and backbones that a configuration uses, those that are there or were."""
    path = results / "configuration.json"
    if not path.is_file():
        verdict.missing[path] = "it names the datasets and backbones that these results stand on"
        return
    try:
        content = read_json(path)
        backbones = [content["backbone"], *content.get("backbones", {}).values()]
        datasets = [name for name in content["datasets"].values() if name]
    except (GapinitError, KeyError, TypeError, AttributeError) as error:
        verdict.altered[path] = f"not a checked configuration ({type(error).__name__}: {error})"
        return
    # A configuration does not say what its backbones were pretrained on.
    datasets += [path.name for path in sorted(results.parent.glob("1_data/*-pretraining"))]
    for stage, names in (("1_backbones", backbones), ("1_data", datasets)):
        for name in map(str, names):
            folder = results.parent / stage / name
            # A configuration may name more than its tables use.
            traces = [trace.format(escape(name)) for trace in TRACES[stage]]
            if folder.is_dir():
                yield folder
            elif name == content["backbone"] or any(any(results.glob(it)) for it in traces):
                verdict.missing[folder] = "the configuration names it"


def _verify(folder: Path, verdict: Verdict) -> None:
    files, records = _files(folder)
    expected: dict[Path, tuple[Path, str]] = {}
    # A file's own record is newer than that of its folder, so it comes later.
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
    """Verify the images of a dataset, which may lie in a folder of the user's own."""
    try:
        root = read_json(listing.with_name("manifest.json"))["root"]
    except (GapinitError, KeyError, TypeError):
        return  # the manifest's own verdict says what is wrong with it
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
    """Return the files below a folder and the records among them; links are not followed."""
    files: list[Path] = []
    records: list[Path] = []
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in NOT_CHECKED]
        for path in (Path(place) / name for name in names if name != SNAKEMAKE):
            if not path.is_symlink():
                (records if is_record(path) else files).append(path)
    return sorted(files), sorted(records)

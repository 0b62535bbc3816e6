"""The provenance in every score file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import package_versions, sha256
from gapinit.config.versions import VERSIONS


def provenance(
    inputs: Mapping[str, Path | Sequence[Path]], packages: Sequence[str] = ("gapinit",)
) -> dict[str, Any]:
    """Return the stage's version, each input file with its SHA-256, and package versions."""
    return {
        "version": VERSIONS["score"],
        "inputs": {
            name: _file(found) if isinstance(found, Path) else [_file(path) for path in found]
            for name, found in inputs.items()
        },
        "packages": package_versions(packages),
    }


def _file(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256(path)}

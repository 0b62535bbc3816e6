"""Files as others write them: without a record of their digest. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gapinit.artifacts.digests import is_record


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def forget_digests(path: Path) -> None:
    """Take away what was recorded of a file and of its folders, as if others had made it."""
    for place in (path.with_name(f".{path.name}.sha256"), path.parent / ".sha256"):
        place.unlink(missing_ok=True)
    for parent in list(path.parents)[1:4]:
        (parent / ".sha256").unlink(missing_ok=True)


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted, without records of digests."""
    return sorted(path.name for path in folder.iterdir() if not is_record(path))

"""The notation of damages of dataset folders: the change, and the lines that report it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
Damages = dict[str, tuple[str, Change, list[tuple[str, str, str]]]]
"""By name: the good folder, the damage, and file, entry and words of each line that reports it."""


class Section:
    """Damages of one good folder; a line names `file` unless it says otherwise."""

    def __init__(self, damages: Damages, folder: str, file: str) -> None:
        self.damages, self.folder, self.file = damages, folder, file

    def __call__(self, change: Change, *told: str) -> None:
        """Add a damage; `told` is written "entry | words" or "file | entry | words"."""
        lines = []
        for text in told:
            *file, entry, words = text.split(" | ")
            lines.append((file[0] if file else self.file, entry, words))
        name = f"{self.folder} {len(self.damages)}: {told[0]}"
        self.damages[name] = (self.folder, change, lines)


def edit(file: str, change: Callable[[Any], object]) -> Change:
    def apply(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return apply


def edit_line(file: str, number: int, **changes: Any) -> Change:
    """Change keys of one line; None takes the key away."""

    def apply(root: Path) -> None:
        lines = (root / file).read_text().splitlines()
        entry = {**json.loads(lines[number - 1]), **changes}
        kept = {key: value for key, value in entry.items() if value is not None}
        lines[number - 1] = json.dumps(kept)
        (root / file).write_text("\n".join(lines))

    return apply


def write(file: str, text: str) -> Change:
    return lambda root: (root / file).write_text(text)


def remove(file: str) -> Change:
    return lambda root: (root / file).unlink()


def copy(source: str, target: str) -> Change:
    return lambda root: shutil.copyfile(root / source, root / target)


def truncate(file: str) -> Change:
    return lambda root: os.truncate(root / file, (root / file).stat().st_size // 2)


def link_out(file: str) -> Change:
    """Move a file or folder out of the root and leave a link."""

    def apply(root: Path) -> None:
        outside = root.parent / "outside"
        (root / file).rename(outside)
        (root / file).symlink_to(outside, target_is_directory=outside.is_dir())

    return apply


def without(file: str, group: str, number: int, key: str) -> Change:
    return edit(file, lambda content: content[group][number].pop(key))

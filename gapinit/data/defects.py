"""Collect a dataset's defects and report them in one error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gapinit.errors import GapinitError

SHOWN = 20


@dataclass(frozen=True)
class Defect:
    """A problem with an entry of a file ('': the whole file)."""

    file: str
    entry: str
    problem: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.entry}" if self.entry else self.file
        return f"{place}: {self.problem}"


@dataclass(frozen=True)
class NamedImage:
    """An image, the annotation entry that names it, and its split ('': unknown)."""

    path: Path
    file: Path
    entry: str
    image_id: int | None
    split: str


class Defects:
    """Collects defects with their file and entry, so that one error shows all of them.

    As a context manager it raises that error at the end of the block. The loaders also record which
    entry names which image, so that later checks (decoding images, comparing splits) can report the
    entry.
    """

    def __init__(self) -> None:
        """Start with no defects."""
        self.found: list[Defect] = []
        self.images: list[NamedImage] = []

    def __enter__(self) -> Self:
        """Return the empty list."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise one error that lists the first 20 defects and counts the rest.

        If another error ended the block, that error is raised instead.
        """
        if kind is not None or not self.found:
            return
        if len(self.found) == 1:
            raise GapinitError(str(self.found[0]))
        lines = [f"{len(self.found)} defects in the dataset:"]
        lines += [f"  {defect}" for defect in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            lines.append(f"  and {len(self.found) - SHOWN} more")
        raise GapinitError("\n".join(lines))

    def add(self, file: Path | str, entry: str, problem: str) -> None:
        """Add a problem with `entry` of `file` ('': the whole file)."""
        self.found.append(Defect(str(file), entry, problem))

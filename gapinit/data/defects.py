"""The defects of a dataset, reported together in one error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gapinit.errors import GapinitError

SHOWN = 20


@dataclass(frozen=True)
class Defect:
    """A problem with an entry ('' for the whole file) of a file."""

    file: str
    entry: str
    problem: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.entry}" if self.entry else self.file
        return f"{place}: {self.problem}"


@dataclass(frozen=True)
class NamedImage:
    """An image, and the entry of an annotation file that names it; '' for an unknown split."""

    path: Path
    file: Path
    entry: str
    image_id: int | None
    split: str


class Defects:
    """Collects defects, each with its file and entry, so that a user sees them all at once.

    As a context manager it raises them at the end of the block. The loaders also note here which
    entry names which image, for good and bad entries alike: a defect that is found later, by
    decoding images or comparing splits, is then reported with its entry.
    """

    def __init__(self) -> None:
        """Start with no defects."""
        self.found: list[Defect] = []
        self.images: list[NamedImage] = []

    def __enter__(self) -> Self:
        """Return the empty list."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise the defects that the block noted, unless another error ends it."""
        if kind is None:
            self.raise_if_any()

    def add(self, file: Path | str, entry: str, problem: str) -> None:
        """Note that `entry` of `file` ('' for the whole file) has a problem."""
        self.found.append(Defect(str(file), entry, problem))

    def raise_if_any(self) -> None:
        """Raise one `GapinitError` that lists the first 20 defects and counts the others."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise GapinitError(str(self.found[0]))
        lines = [f"{len(self.found)} defects in the dataset:"]
        lines += [f"  {defect}" for defect in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            lines.append(f"  and {len(self.found) - SHOWN} more")
        raise GapinitError("\n".join(lines))

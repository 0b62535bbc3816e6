"""A list of what is wrong with a dataset, told in one error."""

from __future__ import annotations

from pathlib import Path

from gapinit.errors import GapinitError

SHOWN = 20


class Defects:
    """Collects defects, each with its file and entry, so that a user sees them all at once."""

    def __init__(self) -> None:
        """Start with no defects."""
        self._messages: list[str] = []

    def add(self, file: Path | str, entry: str, problem: str) -> None:
        """Note that `entry` of `file` ('' for the whole file) has a problem."""
        place = f"{file}: {entry}" if entry else f"{file}"
        self._messages.append(f"{place}: {problem}")

    def __len__(self) -> int:
        """Return the number of defects noted."""
        return len(self._messages)

    def raise_if_any(self) -> None:
        """Raise one `GapinitError` that lists the first 20 defects and counts the others."""
        if not self._messages:
            return
        if len(self._messages) == 1:
            raise GapinitError(self._messages[0])
        lines = [f"{len(self._messages)} defects in the dataset:"]
        lines += [f"  {message}" for message in self._messages[:SHOWN]]
        if len(self._messages) > SHOWN:
            lines.append(f"  and {len(self._messages) - SHOWN} more")
        raise GapinitError("\n".join(lines))

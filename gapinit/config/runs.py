"""A run, and the folder of its artifacts.

A run is a combination of factors (method, rank, layers, calibration, noise, seed, ...). Its path
contains the factors, so a run that several tables need is trained once.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gapinit.config.methods import METHODS
from gapinit.errors import GapinitError

NoiseScale = Literal["unit", "raw"]

FACTORS = (
    "backbone",
    "method",
    "rank",
    "layers",
    "epochs",
    "calibration",
    "calibration_size",
    "noise",
    "noise_scale",
)
"""Factors of an experiment's row that may be lists; the last one varies fastest."""

# The group names are the fields of Run.
_PATH = re.compile(
    r"(?P<backbone>[^/]+)/(?P<dataset>[^/]+)/(?P<method>[^/]+)/"
    r"(?:no-adapter|rank(?P<rank>\d+)_(?P<layers>[a-z-]+)_epochs(?P<epochs>\d+)/"
    r"(?:no-gap|(?P<calibration>[a-z-]+)-(?P<calibration_size>\d+)"
    r"(?:_noise-(?P<noise_scale>[a-z]+)-(?P<noise>[0-9.e-]+))?)/seed(?P<seed>\d+))"
)
_NUMBERS = {"rank": int, "epochs": int, "calibration_size": int, "noise": float, "seed": int}


@dataclass(frozen=True)
class Run:
    """One training run (or the untrained backbone), identified by its factors."""

    backbone: str
    dataset: str
    method: str
    rank: int | None = None
    layers: str | None = None
    epochs: int | None = None
    calibration: str | None = None
    calibration_size: int | None = None
    noise: float = 0.0
    noise_scale: NoiseScale | None = None
    seed: int | None = None

    @property
    def trained(self) -> bool:
        """Return whether the run has an adapter."""
        return bool(METHODS[self.method].adapt)

    @property
    def path(self) -> str:
        """Return the run's folder below a stage's folder, made of the factors in effect."""
        head = f"{self.backbone}/{self.dataset}/{self.method}"
        if not self.trained:
            return f"{head}/no-adapter"
        gap = "no-gap"
        if self.calibration is not None:
            gap = f"{self.calibration}-{self.calibration_size}"
            if self.noise:
                gap += f"_noise-{self.noise_scale}-{self.noise:g}"
        return f"{head}/rank{self.rank}_{self.layers}_epochs{self.epochs}/{gap}/seed{self.seed}"

    @property
    def row(self) -> str:
        """Return the path without the seed."""
        return self.path.rpartition("/")[0]

    @property
    def factors(self) -> dict[str, Any]:
        """Return the factors as in `run.json` and in the tables."""
        return asdict(self)

    @classmethod
    def parse(cls, path: str) -> Run:
        """Return the run with this path; the inverse of `path`."""
        match = _PATH.fullmatch(path)
        if match is None or match["method"] not in METHODS:
            raise GapinitError(f"'{path}' is not the path of a run")
        given = {name: text for name, text in match.groupdict().items() if text is not None}
        factors: dict[str, Any] = {
            name: _NUMBERS.get(name, str)(text) for name, text in given.items()
        }
        run = cls(**factors)
        if run.path != path:
            raise GapinitError(f"'{path}' is not the path of a run, the nearest is '{run.path}'")
        return run


@dataclass(frozen=True)
class TableRow:
    """A row with single values of its factors, and its runs, one per seed."""

    id: str
    label: str
    published: str | None
    runs: tuple[Run, ...]
    reference: str | None = None
    """Id of the row to compare with; the reference row has its own id."""

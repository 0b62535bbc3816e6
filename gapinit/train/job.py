"""The inputs that the runs of a process share, and the goal of each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts.artifacts import digest, package_versions
from gapinit.artifacts.checkpoints import place_of, sealed
from gapinit.config.recipe import NUMBERLESS
from gapinit.config.versions import VERSIONS

if TYPE_CHECKING:
    from gapinit.config.recipe import Recipe
    from gapinit.config.runs import Run
    from gapinit.gap.gap_vectors import GapVectors
    from gapinit.train.trunk.write import Trunk


@dataclass(frozen=True)
class Job:
    """The inputs that all runs of a process share."""

    trunk: Trunk
    layers: list[int]
    gap: GapVectors
    recipe: Recipe
    device: str
    inputs: Mapping[str, Any]
    """Checksums of the inputs, as in `run.json`."""

    def recipe_of(self, run: Run) -> dict[str, Any]:
        """Return a run's recipe for `run.json`: the keys that affect numbers."""
        assert run.rank is not None, "train_runs has checked the run"
        recipe = self.recipe.of(run)
        return {
            **recipe.model_dump(exclude=NUMBERLESS),
            "alpha": recipe.alpha_per_rank * run.rank,
            "max_tokens": self.trunk.inputs["max_tokens"],
            "trunk": self.trunk.mode,
            "trunk_dtype": self.trunk.inputs["dtype"],
        }


@dataclass(frozen=True)
class Goal:
    """A run to train and its output folder."""

    run: Run
    output: Path
    identity: str
    """Digest of everything that affects the run's numbers."""

    @classmethod
    def of(cls, run: Run, output: Path, job: Job) -> Goal:
        """Return the goal of training a run in a job."""
        decisive = {
            "run": run.factors,
            "recipe": job.recipe_of(run),
            "layers": job.layers,
            "inputs": job.inputs,
            "version": VERSIONS["train"],
            "packages": package_versions(),
            "device": job.device,
        }
        return cls(run, output, digest(decisive))

    @property
    def place(self) -> Path:
        """Return the folder of the finished run until all runs of the process are finished."""
        return place_of(self.output, self.identity)

    @property
    def done(self) -> bool:
        """Return whether the finished run is in `place`, with valid checksums."""
        return sealed(self.place, self.identity)

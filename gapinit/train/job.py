"""What the runs of a process share, and the goal of each."""

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
    """What all runs of a process share."""

    trunk: Trunk
    layers: list[int]
    gap: GapVectors
    recipe: Recipe
    device: str
    inputs: Mapping[str, Any]
    """Checksums of the inputs, as they stand in `run.json`."""

    def recipe_of(self, run: Run) -> dict[str, Any]:
        """Return a run's recipe as it stands in `run.json`: the keys that change numbers."""
        assert run.rank is not None, "train_runs lets no other run come here"
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
    """A run to train, and where it goes."""

    run: Run
    output: Path
    identity: str
    """Digest of all that decides the run's numbers."""

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
        """Return where the run waits for the others when it is done."""
        return place_of(self.output, self.identity)

    @property
    def done(self) -> bool:
        """Return whether it waits there already, whole."""
        return sealed(self.place, self.identity)

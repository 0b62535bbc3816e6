"""The file of a backbone, `config/backbones/<name>.yaml`: its family and its own recipe.

Its keys override the configuration's for that backbone only, since models of different sizes
differ in depth and batch size. No torch: the Snakefile reads this at every parse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import field_serializer

from gapinit.config.recipe import Decoding, Layers, Positive, Training
from gapinit.config.yaml_files import Settings, check_settings, read_yaml

Part = TypeVar("Part", bound=Settings)


class Resources(Settings):
    """Resources of a job with the backbone that override those of the rules."""

    mem_mb: Positive | None = None
    gpu_mem_mb: Positive | None = None
    runtime: Positive | None = None
    """Minutes."""
    threads: Positive | None = None
    """For pretraining. One thread is more efficient than two and leaves a core to other jobs."""


class BackboneRecipe(Settings):
    """A backbone's own recipe; in every part, only the keys that its file sets have an effect."""

    layers: Layers | None = None
    training: Training | None = None
    decoding: Decoding | None = None
    resources: Resources = Resources()
    decoder_layers: Positive | None = None
    """Number of decoder layers, for checks before the weights are read."""

    @field_serializer("layers", "training", "decoding")
    def _as_given(self, part: Settings | None) -> dict[str, Any] | None:
        """Write only the keys that were set: a default would override when it is read."""
        return None if part is None else part.model_dump(exclude_unset=True)


class BackboneSettings(BackboneRecipe):
    """The keys that the files of all families have; a family adds its own."""

    name: str
    family: str


def read_recipe(path: Path) -> BackboneRecipe:
    """Read the recipe in a backbone's file; the family checks the other keys."""
    content = read_yaml(path)
    own = {key: value for key, value in content.items() if key in BackboneRecipe.model_fields}
    return check_settings(own, BackboneRecipe, origin=str(path))


def overridden(base: Part, given: Part | None) -> Part:
    """Return `base` with the keys that `given` sets."""
    if given is None:
        return base
    return base.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})

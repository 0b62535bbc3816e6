"""What a backbone's file, `config/backbones/<name>.yaml`, says: its family and its own recipe.

The keys here override the configuration's for that backbone alone, since models of different
sizes share neither depth nor batch size. No torch: the Snakefile reads this at every parse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import field_serializer

from gapinit.config.recipe import Decoding, Layers, Positive, Training
from gapinit.config.yaml_files import Settings, check_settings, read_yaml

Part = TypeVar("Part", bound=Settings)


class Resources(Settings):
    """What a job with the backbone needs, where that is not what the rules say."""

    mem_mb: Positive | None = None
    gpu_mem_mb: Positive | None = None
    runtime: Positive | None = None
    """Minutes."""
    threads: Positive | None = None
    """Of its pretraining. One thread wastes less than two and leaves a core to other jobs."""


class BackboneRecipe(Settings):
    """What a backbone has of its own; of every part, only the keys that its file sets count."""

    layers: Layers | None = None
    training: Training | None = None
    decoding: Decoding | None = None
    resources: Resources = Resources()
    decoder_layers: Positive | None = None
    """How many there are, to be checked before the weights are read."""

    @field_serializer("layers", "training", "decoding")
    def _as_given(self, part: Settings | None) -> dict[str, Any] | None:
        """Write the keys that were set alone: a default read back would override."""
        return None if part is None else part.model_dump(exclude_unset=True)


class BackboneSettings(BackboneRecipe):
    """A backbone's file: what every family has. A family adds its own keys."""

    name: str
    family: str


def read_recipe(path: Path) -> BackboneRecipe:
    """Read the recipe in a backbone's file; its other keys are the family's to check."""
    content = read_yaml(path)
    own = {key: value for key, value in content.items() if key in BackboneRecipe.model_fields}
    return check_settings(own, BackboneRecipe, origin=str(path))


def overridden(base: Part, given: Part | None) -> Part:
    """Return `base` with the keys that `given` sets."""
    if given is None:
        return base
    return base.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})

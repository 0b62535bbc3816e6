"""The configuration of a workflow, from the YAML files in `config/`.

Every other file overrides `config/default.yaml`, so it holds only the differences. This module
checks the merged configuration and every name in it before Snakemake plans a job. No torch: the
Snakefile reads this at every parse.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from gapinit.config.backbone_settings import BackboneRecipe, overridden, read_recipe
from gapinit.config.recipe import Decoding, Layers, Lora, Positive, Training
from gapinit.config.yaml_files import Origin, Settings, check_settings, place_of
from gapinit.errors import GapinitError

# Names become folder names, so they have no characters that are special to a shell or file system.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Source = Literal["in-domain", "ood", "mixed"]
Strategy = Literal["naive", "gg-safe", "all", "all-vision"]

Part = Literal["in-domain", "calibration", "ood", "vqa", "okvqa", "pope", "instruct"]


class Datasets(Settings):
    """The dataset of each part."""

    in_domain: Name = Field(alias="in-domain")
    """Captions for training and scoring."""
    calibration: Name | None = None
    """Captions for gap estimation, if not those of `in-domain`."""
    ood: Name | None = None
    """Captions of another domain, for transfer and out-of-domain calibration."""
    vqa: Name | None = None
    """Questions for training and scoring."""
    okvqa: Name | None = None
    """Questions that need outside knowledge, for scoring."""
    pope: Name | None = None
    """Questions about present and absent objects, for scoring."""
    instruct: Name | None = None
    """Conversations about images, for training."""

    def of(self, part: str) -> str:
        """Return the dataset of a part; raise GapinitError if none is configured."""
        if part == "calibration":
            return self.calibration or self.in_domain
        name = getattr(self, part.replace("-", "_"))
        if name is None:
            raise GapinitError(f"key 'datasets.{part}': no dataset is configured for this part")
        return str(name)

    def named(self) -> dict[str, str]:
        """Return the configured datasets by part."""
        given = self.model_dump(by_alias=True)
        return {part: name for part, name in given.items() if name is not None}


class Calibration(Settings):
    """The sample from which gaps are estimated (paper, Section 4.2 and Appendix D)."""

    source: Source = "in-domain"
    size: Positive = 256
    sizes: list[Positive] = [16, 64, 256, 1024]
    heldout: Annotated[int, Field(ge=0)] = 256
    seed: int = 0

    def pairs(self) -> int:
        """Return the number of pairs to extract: the largest set plus the held-out sample."""
        return max([self.size, *self.sizes]) + self.heldout


class Gap(Settings):
    """How per-sample gaps become one vector and one score for each layer (paper, Appendix C)."""

    neighbours: Positive = 10
    alpha_semantic: float = 1.0
    alpha_geometric: float = 1.0
    smoothing: Literal["spot", "mean"] = "spot"


class Shards(Settings):
    """The number of jobs for each extraction and for the predictions of each row."""

    states: Positive = 1
    trunk: Positive = 1
    features: Positive = 1
    predict: Positive = 1


class Config(Settings):
    """The whole configuration of a workflow run."""

    name: Name
    results: str = "results"
    backbone: Name
    """The main backbone, for the figures and for every row without a backbone."""
    backbones: dict[Name, Name] = {}
    """Backbones by part, for rows that select a part."""
    datasets: Datasets
    data_root: str | None = None
    annotations: str | None = None
    folders: dict[Name, str] = {}
    """Local folders by dataset; these datasets are not downloaded."""
    data: str = "data"
    """The folder of downloaded datasets."""
    downloads: str | None = None
    """Table of downloads in place of `config/downloads.yaml`, for example with other checksums."""
    mirror: str | None = None
    """Base URL of downloads in place of the publishers'."""
    seeds: Annotated[list[int], Field(min_length=1)]
    calibration: Calibration
    gap: Gap = Gap()
    layers: Layers
    lora: Lora = Lora()
    training: Training = Training()
    decoding: Decoding = Decoding()
    shards: Shards = Shards()
    experiments: Annotated[list[Name], Field(min_length=1)]
    figures: list[Name] = []
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Trackers that also get the step log (`gapinit/train/trackers.py`)."""
    recipes: dict[Name, BackboneRecipe] = {}
    """Each backbone's recipe, read from its file and never written in a configuration."""

    def backbone_of(self, part: str | None) -> str:
        """Return a part's backbone (None: the main one); raise GapinitError for an unknown part."""
        if part is None:
            return self.backbone
        if part not in self.backbones:
            raise GapinitError(
                f"no backbone is configured for the part '{part}' (key 'backbones'), expected one "
                f"of: {', '.join(self.backbones) or 'none'}"
            )
        return self.backbones[part]

    def recipe_of(self, backbone: str) -> BackboneRecipe:
        """Return a backbone's own recipe; it is empty if its file sets no key."""
        return self.recipes.get(backbone, BackboneRecipe())

    def layers_of(self, backbone: str) -> Layers:
        """Return a backbone's settings of adapted layers."""
        return overridden(self.layers, self.recipe_of(backbone).layers)

    def training_of(self, backbone: str) -> Training:
        """Return a backbone's training settings."""
        return overridden(self.training, self.recipe_of(backbone).training)

    def decoding_of(self, backbone: str) -> Decoding:
        """Return a backbone's decoding settings."""
        return overridden(self.decoding, self.recipe_of(backbone).decoding)

    @field_validator("results", "data", "data_root", "annotations", "downloads")
    @classmethod
    def _paths_can_be_rules(cls, value: str | None) -> str | None:
        """Reject characters that break a rule's path: Snakemake reads braces as wildcards."""
        odd = next((one for one in value or "" if one in "{}" or not one.isprintable()), None)
        if odd is not None:
            raise ValueError(
                f"a workflow's path cannot contain {odd!a}; choose another folder or use a link "
                "to this one"
            )
        return value

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        smallest = min([self.calibration.size, *self.calibration.sizes])
        if smallest <= self.gap.neighbours:
            raise ValueError(
                f"calibration of {smallest} pairs has fewer than {self.gap.neighbours} neighbours "
                f"for each pair: raise calibration.sizes or lower gap.neighbours"
            )
        return self


def load_config(content: Mapping[str, Any], folder: Path, origin: Origin) -> Config:
    """Check a whole configuration and every name in it against the files in `folder`.

    `folder` is `config/`; `origin` names the file or command line of a key.
    Raises GapinitError that names the key, the expected and the found value.
    """
    config = check_settings(content, Config, origin)
    if "recipes" in content:
        raise GapinitError(
            f"{place_of(origin, ['recipes'])}: key 'recipes': not allowed in a configuration; "
            f"expected a backbone's recipe in {folder}/backbones/NAME.yaml"
        )
    names = [
        ("backbones", "backbone", config.backbone),
        *(("backbones", f"backbones.{part}", name) for part, name in config.backbones.items()),
        *(("datasets", f"datasets.{part}", name) for part, name in config.datasets.named().items()),
        *(("experiments", "experiments", name) for name in config.experiments),
    ]
    for kind, key, name in names:
        if not (folder / kind / f"{name}.yaml").is_file():
            known = sorted(path.stem for path in (folder / kind).glob("*.yaml"))
            place = place_of(origin, key.split(".", 1))
            raise GapinitError(
                f"{place}: key '{key}': unknown name '{name}', expected one of the files in "
                f"{folder / kind}/: {', '.join(known) or 'none'}"
            )
    used = dict.fromkeys([config.backbone, *config.backbones.values()])
    recipes = {name: read_recipe(folder / "backbones" / f"{name}.yaml") for name in used}
    return config.model_copy(update={"recipes": recipes})

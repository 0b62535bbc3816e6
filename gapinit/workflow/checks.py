"""Checks of a plan before any job starts, so that errors appear at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.config.configuration import Config
from gapinit.config.experiments import Experiment
from gapinit.config.methods import METHODS
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError
from gapinit.figures import FIGURES

if TYPE_CHECKING:
    from gapinit.workflow.plan import Plan

Origin = Callable[[Sequence[Any]], str]
"""Names the file in which a key got its value."""
_NUM_LAYERS = ("layers", "num_layers")


def check_plan(plan: Plan, origin: Origin) -> None:
    """Raise GapinitError for calibrations, figures, layers or datasets that are not available."""
    for name in plan.experiments:
        _check_calibration(plan, name)
    for figure, (_, _, metric) in FIGURES.items():
        if metric and figure in plan.config.figures and plan.first_with(metric) is None:
            raise GapinitError(
                f"{origin(('figures',))}: key 'figures': '{figure}' draws a table with {metric}, "
                "which no experiment of this configuration has. Add one or leave the figure out."
            )
    _check_layers(plan, origin)
    _check_datasets(plan)


def require_datasets(experiment: Experiment, config: Config, name: str, origin: Origin) -> None:
    """Raise GapinitError if an experiment needs a part for which no dataset is configured."""
    named = config.datasets.named()
    for part in (experiment.train, *experiment.parts()):
        if part not in named:
            raise GapinitError(
                f"{origin(('datasets', part))}: key 'datasets.{part}': no dataset is configured "
                f"for this part, which experiment '{name}' needs. Name one or omit the experiment."
            )


def _check_layers(plan: Plan, origin: Origin) -> None:
    """Raise GapinitError for more layers than a backbone has, if its file gives their number."""
    for name in dict.fromkeys([plan.config.backbone, *(run.backbone for run in plan.runs())]):
        layers, recipe = plan.config.layers_of(name), plan.config.recipe_of(name)
        available = recipe.decoder_layers
        if available is None or layers.num_layers + layers.exclude_bottom <= available:
            continue
        own = recipe.layers is not None
        place = plan.folder / "backbones" / f"{name}.yaml" if own else origin(_NUM_LAYERS)
        raise GapinitError(
            f"{place}: key '{'.'.join(_NUM_LAYERS)}': {layers.num_layers} layers, but backbone "
            f"'{name}' has {available}, of which exclude_bottom removes {layers.exclude_bottom}"
        )


def _check_calibration(plan: Plan, name: str) -> None:
    """Raise GapinitError for calibration sizes or sources that are not configured."""
    largest = plan.config.calibration.pairs() - plan.config.calibration.heldout
    for run in plan.runs(name):
        if not METHODS[run.method].uses_gap:
            continue
        plan.sources(run.calibration or "in-domain")
        if (run.calibration_size or 0) > largest:
            raise GapinitError(
                f"experiment '{name}': calibration size {run.calibration_size} is above the "
                f"largest extracted size, {largest}: add it to calibration.sizes"
            )


def _check_datasets(plan: Plan) -> None:
    """Raise GapinitError for a calibration larger than its data, or an unreadable local folder.

    A folder that has a manifest was checked when the workflow wrote it. Other local folders are
    read here, so that errors appear before any job starts. Datasets that are not downloaded yet
    cannot be checked.
    """
    from gapinit.data.check import require_pairs
    from gapinit.data.folder import read_folder
    from gapinit.data.manifest import read_manifest

    runs = [run for run in plan.runs() if METHODS[run.method].uses_gap]
    sources = {name for run in runs for name in plan.sources(run.calibration or "in-domain")}
    count = plan.config.calibration.pairs()
    for name in sorted({plan.in_domain, *sources}):
        settings = plan.datasets[name]
        if isinstance(settings, ScenesSettings):
            found = settings.images.train + settings.images.restval
            if count > found:
                raise GapinitError(
                    f"dataset '{name}': calibration needs {count} image-caption pairs (largest "
                    f"size and held-out sample), found {found} images in the split 'train'. "
                    "Lower calibration.sizes, calibration.size or calibration.heldout."
                )
            continue
        made = Path(plan.config.results) / "1_data" / name / "manifest.json"
        root, annotations = plan.local_paths(name)
        manifest = read_manifest(made) if made.is_file() else None
        if not plan.retrieved(name):
            plan.annotation_files(name)  # raises the error here if a file is missing, not in a rule
            if manifest is None or manifest.root.resolve() != root.resolve():
                manifest = read_folder(settings, root, annotations)
        if manifest is not None:
            require_pairs(manifest, "train", count)

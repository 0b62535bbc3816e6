"""Stage `train`: train adapters of one run or several with Hugging Face Trainer on a cached trunk.

The tail is the backbone's decoder above the frozen part; its inputs are cached states. Loss and
gradients equal those of the whole model. Runs with the same backbone, trunk and layers share a
process, which loads the model once and trains them one after another, with the same results as
each run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import sha256
from gapinit.artifacts.checkpoints import clear, publish
from gapinit.backbones import load_backbone
from gapinit.backbones.fingerprint import backbone_digest
from gapinit.config.recipe import Recipe
from gapinit.config.runs import Run
from gapinit.errors import GapinitError
from gapinit.gap.gap_vectors import GapVectors
from gapinit.gap.layers import adapts_vision, read_layers
from gapinit.train.group import train_one
from gapinit.train.job import Goal, Job
from gapinit.train.trunk.write import Trunk, read_trunk


def train_run(
    run: Run,
    backbone: Path,
    trunk: Path | Sequence[Path],
    layers: Path,
    gap: Path,
    output: Path,
    *,
    recipe: Recipe,
    device: str = "cpu",
) -> None:
    """Train one run into the folder `output`; see `train_runs`."""
    train_runs([run], backbone, trunk, layers, gap, [output], recipe=recipe, device=device)


def train_runs(
    runs: Sequence[Run],
    backbone: Path,
    trunk: Path | Sequence[Path],
    layers: Path,
    gap: Path,
    outputs: Sequence[Path],
    *,
    recipe: Recipe,
    device: str = "cpu",
) -> None:
    """Train runs that share backbone, trunk, layers and gap file, each into its own folder.

    An output holds `adapter/`, `steps.csv` and `run.json`, byte-identical for the same run, and
    `process.json` (time, memory, command). `gap` holds the direction of methods that use one; the
    step log of every run measures the alignment of B with it.

    Finished runs, and a checkpoint of the current one every `recipe.checkpoint_steps` steps, are
    stored beside the outputs until all runs are finished. After a kill the same call resumes from
    them and writes the same files. Raises GapinitError for inputs that do not belong together and,
    with run and step, for a loss that is not finite.
    """
    goals_of = _require_one_trunk(runs, outputs)
    chosen = read_layers(layers, str(runs[0].layers))
    cached, directions = read_trunk(trunk), GapVectors.load(gap)
    own_digest = backbone_digest(backbone)
    _require_same_backbone(own_digest, trunk, cached.inputs, "trunk")
    _require_same_backbone(own_digest, gap, {"backbone": directions.backbone}, "gap")
    _require_first_layer(chosen, trunk, cached, vision=adapts_vision(str(runs[0].layers)))
    inputs = {
        "backbone": own_digest,
        "trunk": cached.inputs,
        "layers": sha256(layers),
        "gap": sha256(gap),
    }
    job = Job(cached, chosen, directions, recipe, device, inputs)
    goals = [Goal.of(run, output, job) for run, output in goals_of]
    left = [goal for goal in goals if not goal.done]
    if left:
        model = load_backbone(backbone, device)
        job = replace(job, trunk=cached.prepare(model))
        for goal in left:
            train_one(model, job, goal)
    for goal in goals:
        publish(goal.place, goal.output)
    for goal in goals:
        clear(goal.output)


def _require_one_trunk(runs: Sequence[Run], outputs: Sequence[Path]) -> list[tuple[Run, Path]]:
    """Return (run, output) pairs; raise GapinitError for runs that cannot share a process."""
    if not runs or len(runs) != len(outputs):
        raise GapinitError(
            f"--run and --output: found {len(runs)} runs and {len(outputs)} outputs, expected one "
            "output per run, in the same order"
        )
    for run in runs:
        if run.seed is None or run.rank is None or run.layers is None:
            raise GapinitError(f"run '{run.path}' has no adapter to train")
        for factor in ("backbone", "dataset", "layers"):
            one, other = getattr(runs[0], factor), getattr(run, factor)
            if one != other:
                raise GapinitError(
                    f"run '{run.path}' has the {factor} '{other}', run '{runs[0].path}' has "
                    f"'{one}': runs of one call share backbone, dataset and layers. Train them in "
                    "separate calls."
                )
    resolved = [Path(output).resolve() for output in outputs]
    for found, what in ((list(runs), "--run"), (resolved, "--output")):
        if len(set(found)) < len(found):
            raise GapinitError(f"{what}: the same value is given twice")
    return [(run, Path(output)) for run, output in zip(runs, outputs, strict=True)]


def _require_same_backbone(
    expected: str, path: Path | Sequence[Path], inputs: Mapping[str, Any], stage: str
) -> None:
    if inputs.get("backbone") != expected:
        raise GapinitError(
            f"{_named(path)}: made from another backbone's weights. Delete it and run "
            f"`gapinit {stage}` again."
        )


def _require_first_layer(
    layers: Sequence[int], trunk: Path | Sequence[Path], cached: Trunk, *, vision: bool
) -> None:
    if cached.first_layer > min(layers):
        raise GapinitError(
            f"{_named(trunk)}: starts at layer {cached.first_layer}, but layer {min(layers)} is "
            "adapted. Run `gapinit trunk` with this run's layers."
        )
    if vision and cached.mode != "off":
        raise GapinitError(
            f"{_named(trunk)}: holds outputs of the frozen vision tower (mode '{cached.mode}'), "
            "but this run adapts the tower. Run `gapinit trunk` with this run's layers."
        )


def _named(path: Path | Sequence[Path]) -> str:
    """Return the path of a file, or of the first of several shards."""
    return str(path) if isinstance(path, str | Path) else str(path[0])

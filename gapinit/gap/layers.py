"""Which decoder layers get adapters: the last ones, the ones with the widest gap, or all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from gapinit.artifacts.artifacts import open_hdf5, read_json, write_json
from gapinit.errors import GapinitError

LayerStrategy = Literal["naive", "gg-safe", "all"]
ALL_VISION = "all-vision"
"""The strategy that adapts every decoder layer and the vision tower."""


def adapts_vision(strategy: str) -> bool:
    """Say whether a strategy adapts the vision tower, too."""
    return strategy == ALL_VISION


def select_layers(
    score: Sequence[float], strategy: LayerStrategy, num_layers: int, exclude_bottom: int
) -> list[int]:
    """Choose the layers to adapt, as sorted indices from 0 (the lowest decoder layer).

    `score` holds one SPOT-Gap score per decoder layer. "naive" takes the last `num_layers`;
    "gg-safe" those with the highest score among the layers from `exclude_bottom` upwards (ties go
    to the lower layer); "all" takes every layer and heeds neither number.

    `GapinitError` if the strategy is unknown, a score is not finite, or fewer than `num_layers`
    layers may be chosen.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.4 and Appendix G.5.
    """
    available = len(score)
    if strategy not in get_args(LayerStrategy):
        known = ", ".join(get_args(LayerStrategy))
        raise GapinitError(f"layers: expected one of {known}, found {strategy!r}")
    if available == 0:
        raise GapinitError("score: expected one SPOT-Gap score per decoder layer, found none")
    if strategy == "all":
        return list(range(available))
    _check_count("num_layers", num_layers, least=1)
    if strategy == "naive":
        _check_enough(num_layers, available, "the decoder has")
        return list(range(available - num_layers, available))

    _check_count("exclude_bottom", exclude_bottom, least=0)
    for layer, value in enumerate(score):
        if not math.isfinite(value):
            raise GapinitError(f"score: layer {layer} has the score {value}, expected a number")
    # ASSUME: the paper excludes the bottom layers of the vision encoder. The gap lives in the
    # decoder, where the corresponding choice is a configured number of bottom decoder layers.
    remaining = range(min(exclude_bottom, available), available)
    _check_enough(
        num_layers, len(remaining), f"without the bottom {exclude_bottom} the decoder has"
    )
    ranked = sorted(remaining, key=lambda layer: (-score[layer], layer))
    return sorted(ranked[:num_layers])


def write_layers(gap: Path, output: Path, num_layers: int, exclude_bottom: int) -> None:
    """Write what each strategy chooses, with the scores it chose by, as JSON.

    Reads the scores of a gap artifact (HDF5 of kind "gap"). The keys are the strategies ("naive",
    "gg-safe", "all", and "all-vision" for the decoder layers of that), "num_layers",
    "exclude_bottom" and "score" (one number per layer).
    """
    with open_hdf5(gap, "gap") as file:
        if "score" not in file:
            raise GapinitError(f"{gap}: dataset 'score' is missing. Run the gap stage again.")
        # Readable files of others may still hold the scores of another decoder.
        if "gap" in file and file["score"].shape != file["gap"].shape[:1]:
            raise GapinitError(
                f"{gap}: 'score' has shape {file['score'].shape} and 'gap' {file['gap'].shape}: "
                "expected one score a layer. Delete it and run the gap stage again."
            )
        score = [float(value) for value in file["score"][:]]
    if not all(map(math.isfinite, score)):
        raise GapinitError(
            f"{gap}: 'score' has an entry that is not finite (NaN or infinity). Delete it and run "
            "the gap stage again."
        )
    content: dict[str, object] = {
        strategy: select_layers(score, strategy, num_layers, exclude_bottom)
        for strategy in get_args(LayerStrategy)
    }
    content[ALL_VISION] = content["all"]
    content |= {"num_layers": num_layers, "exclude_bottom": exclude_bottom, "score": score}
    write_json(output, content)


def read_layers(path: Path, strategy: str) -> list[int]:
    """Return the layers that a strategy chose, from the file of `write_layers`.

    `GapinitError` for a file that does not hold them, or names a layer that the decoder lacks.
    """
    content = read_json(path)
    found = content.get(strategy) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise GapinitError(f"{path}: no layers of strategy '{strategy}'. Run `gapinit layers`.")
    available = len(content["score"]) if isinstance(content.get("score"), list) else math.inf
    for layer in found:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < available:
            raise GapinitError(
                f"{path}: key '{strategy}': {layer!r} is no layer of this decoder, expected whole "
                "numbers from 0. Run `gapinit layers` again."
            )
    return found


def _check_count(name: str, value: int, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise GapinitError(f"{name}: expected a whole number of at least {least}, found {value!r}")


def _check_enough(wanted: int, available: int, reason: str) -> None:
    if wanted > available:
        raise GapinitError(
            f"num_layers: {wanted} layers asked for, but {reason} {available}. Ask for fewer"
            + (" or exclude fewer." if reason.startswith("without") else ".")
        )

"""Which decoder layers get adapters: the last ones, the ones with the widest gap, or all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from gapinit.artifacts.artifacts import open_hdf5, read_json, write_json
from gapinit.errors import GapinitError
from gapinit.gap.options import check_choice, check_count

LayerStrategy = Literal["naive", "gg-safe", "all"]
ALL_VISION = "all-vision"
"""The strategy that adapts every decoder layer and the vision tower."""


def adapts_vision(strategy: str) -> bool:
    """Return whether a strategy also adapts the vision tower."""
    return strategy == ALL_VISION


def select_layers(
    score: Sequence[float], strategy: LayerStrategy, num_layers: int, exclude_bottom: int
) -> list[int]:
    """Choose the layers to adapt, as sorted indices from 0 (the lowest decoder layer).

    `score` holds one SPOT-Gap score per decoder layer. "naive" takes the last `num_layers`;
    "gg-safe" those with the highest score among the layers from `exclude_bottom` upwards (ties go
    to the lower layer); "all" takes every layer, whatever the two numbers are.

    `GapinitError` if the strategy is unknown, a score is not finite, or fewer than `num_layers`
    layers may be chosen.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.4 and Appendix G.5.
    """
    available = len(score)
    check_choice("layers", strategy, LayerStrategy)
    if strategy == "all":
        return list(range(available))
    check_count("num_layers", num_layers)
    if strategy == "naive":
        _check_enough(num_layers, available, "the decoder has")
        return list(range(available - num_layers, available))

    check_count("exclude_bottom", exclude_bottom, least=0)
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
    """Write the layers that each strategy chooses, and the scores, as JSON.

    Reads the scores of a gap artifact (HDF5 of kind "gap"). The keys are the strategies ("naive",
    "gg-safe", "all", and "all-vision" for its decoder layers), "num_layers", "exclude_bottom" and
    "score" (one number per layer).
    """
    with open_hdf5(gap, "gap") as file:
        score = file["score"][:].tolist()
    try:
        content: dict[str, object] = {
            strategy: select_layers(score, strategy, num_layers, exclude_bottom)
            for strategy in get_args(LayerStrategy)
        }
    except GapinitError as error:
        raise GapinitError(f"{gap}: {error}") from None
    content[ALL_VISION] = content["all"]
    content |= {"num_layers": num_layers, "exclude_bottom": exclude_bottom, "score": score}
    write_json(output, content)


def read_layers(path: Path, strategy: str) -> list[int]:
    """Return the layers that a strategy chose, from the file of `write_layers`.

    `GapinitError` names the file and the strategy if they are not there.
    """
    from pydantic import Field, TypeAdapter, ValidationError  # the planner needs this module alone

    layer = Annotated[int, Field(strict=True, ge=0)]
    layers = TypeAdapter(Annotated[list[layer], Field(min_length=1)])
    content = read_json(path)
    found = content.get(strategy) if isinstance(content, dict) else None
    try:
        return layers.validate_python(found)
    except ValidationError:
        raise GapinitError(
            f"{path}: key '{strategy}': expected layers, whole numbers from 0, found {found!r}. "
            "Run `gapinit layers` again."
        ) from None


def _check_enough(wanted: int, available: int, reason: str) -> None:
    if wanted > available:
        raise GapinitError(
            f"num_layers: {wanted} layers asked for, but {reason} {available}. Ask for fewer"
            + (" or exclude fewer." if reason.startswith("without") else ".")
        )

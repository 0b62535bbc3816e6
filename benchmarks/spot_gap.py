"""SPOT-Gap of every layer: ours against scikit-learn's NearestNeighbors.

Both read equal float32 states, N = 1,024 pairs of width d = 2,560, for 32 layers, and compute the
same score: the mean distance to the 10 nearest neighbours within vision and within text, and the 10
nearest pairs in the joint space of both. The peer is one `NearestNeighbors` per space, as a user
would write it, with algorithm="brute" and with its default. The programs alternate layer by layer
in one process; the table gives medians and quartiles of the ratios.

The machine's limit is one float32 matrix product (N, d) x (d, N) per modality. A symmetric product
needs only half of it, so a share above 100 % is possible.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from benchmarks.measure import Result, Spread, Target, ratios
from gapinit.gap.spot import spot_gap

Float32Array = npt.NDArray[np.float32]
NEIGHBOURS = 10


def layer_states(layer: int, number: int, width: int) -> tuple[Float32Array, Float32Array]:
    """Draw text and vision states of one layer: correlated pair by pair, a gap between them."""
    generator = np.random.default_rng(layer)
    common = generator.standard_normal((number, width), dtype=np.float32)
    text, vision = (
        common + generator.standard_normal((number, width), dtype=np.float32) for _ in range(2)
    )
    return text + np.float32(0.5), vision


def peer(text: Float32Array, vision: Float32Array, algorithm: str) -> float:
    """Compute the same score from three searches of scikit-learn."""

    def search(points: Float32Array) -> tuple[Any, Any]:
        found = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, algorithm=algorithm).fit(points)
        distances, indices = found.kneighbors(points)
        return distances[:, 1:], indices[:, 1:]  # the first is the point itself

    dispersion = [search(points)[0].mean(axis=1) for points in (text, vision)]
    pairs = search(np.concatenate([vision, text], axis=1))[1]
    semantic = np.linalg.norm((text - vision).astype(np.float64), axis=1)
    combined = semantic + np.abs(dispersion[0] - dispersion[1])
    return float(combined[pairs].mean())


def limit(text: Float32Array, vision: Float32Array) -> float:
    """Compute the matrix products that the distances within both modalities need."""
    return float(sum((points @ points.T.copy())[0, 0] for points in (text, vision)))


def main() -> None:
    """Measure, print and write `results/spot_gap.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    programs: dict[str, Callable[[Float32Array, Float32Array], float]] = {
        "gapinit": lambda t, v: spot_gap(t, v, neighbours=NEIGHBOURS).score,
        "sklearn brute": lambda t, v: peer(t, v, "brute"),
        "sklearn default": lambda t, v: peer(t, v, "auto"),
        "matrix products": limit,
    }
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    worst = 0.0
    for layer in range(-1, options.layers):  # the first is a warm-up
        text, vision = layer_states(layer + 1, options.pairs, options.width)
        score = {}
        for name, program in programs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            score[name] = program(text, vision)
            if layer >= 0:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
        worst = max(worst, abs(score["gapinit"] / score["sklearn brute"] - 1))
    ratio = {name: ratios(wall["gapinit"], taken) for name, taken in wall.items()}
    size = f"N = {options.pairs}, d = {options.width}, {options.layers} layers"
    brute = Target(
        f"SPOT-Gap, {size}",
        "scikit-learn NearestNeighbors per layer, algorithm='brute'",
        ratio["sklearn brute"],
        "at least",
        1.3,
    )
    measured: dict[str, Spread | float | int | str] = {
        f"{name}, ms a layer": Spread([1e3 * value for value in taken])
        for name, taken in wall.items()
    }
    measured |= {
        f"{name}, CPU ms a layer": Spread([1e3 * value for value in taken])
        for name, taken in cpu.items()
    }
    measured["scikit-learn's default algorithm over ours"] = ratio["sklearn default"]
    measured["two float32 matrix products over ours"] = ratio["matrix products"]
    measured["largest relative difference of the scores"] = worst
    settings = {
        "threads": len(os.sched_getaffinity(0)),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }
    Result("spot_gap", [brute], measured, settings).write()


if __name__ == "__main__":
    main()

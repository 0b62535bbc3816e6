"""SPOT-Gap of every layer: ours against scikit-learn's NearestNeighbors.

Both get the same float32 states, N = 1,024 pairs of width d = 2,560, for 32 layers, and both end
in the same score: the mean distance to the 10 nearest neighbours within vision and within text,
and the 10 nearest pairs in the joint space of both. The peer is one `NearestNeighbors` a space, as
anyone would write it, with algorithm="brute" and with its default, which chooses for itself. The
programs alternate layer by layer in one process; the table gives medians and quartiles of the
ratios.

The machine's limit is one float32 matrix product (N, d) x (d, N) for each modality, of which a
symmetric product needs half: a share above 100 % is possible.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from gapinit.spot import spot_gap

Float32Array = npt.NDArray[np.float32]
NEIGHBOURS = 10
RESULTS = Path(__file__).parent / "results"


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
    """Multiply as much as the distances within both modalities need."""
    return float(sum((points @ points.T.copy())[0, 0] for points in (text, vision)))


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--output", type=Path, default=RESULTS / "spot_gap.json")
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
    result = {
        "pairs": options.pairs,
        "width": options.width,
        "layers": options.layers,
        "threads": len(os.sched_getaffinity(0)),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        "largest_relative_difference_of_scores": worst,
        "programs": {name: _row(wall, cpu, name) for name in programs},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'':18}{'ms a layer':>12}{'CPU ms':>9}{'times ours':>12}  quartiles")
    for name, row in result["programs"].items():
        low, middle, high = row["ratio_quartiles"]
        print(
            f"{name:18}{1e3 * row['wall_s']:12.1f}{1e3 * row['cpu_s']:9.1f}{middle:12.2f}"
            f"  {low:.2f} to {high:.2f}"
        )
    print(f"largest relative difference of the scores: {worst:.1e}")


def _row(
    wall: dict[str, list[float]], cpu: dict[str, list[float]], name: str
) -> dict[str, float | list[float]]:
    ratios = np.divide(wall[name], wall["gapinit"])
    return {
        "wall_s": float(np.median(wall[name])),
        "cpu_s": float(np.median(cpu[name])),
        "ratio_of_medians": float(np.median(wall[name]) / np.median(wall["gapinit"])),
        "ratio_quartiles": [float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75))],
    }


if __name__ == "__main__":
    main()

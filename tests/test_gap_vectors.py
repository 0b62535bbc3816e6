"""`GapVectors` on disk: saved, loaded, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gapinit
from gapinit.backbones.weights_fingerprint import model_fingerprint
from gapinit.gap.gap_vectors import GapVectors

from .plain_json import forget_digests
from .small_library import SmallLibrary


def test_choosing_layers(gap: GapVectors) -> None:
    scored = replace(gap, spot_scores=torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    assert scored.select(2) == scored.select(2, "naive") == [1, 2]
    assert scored.select(1, "gg-safe") == [0]
    assert scored.select(1, "gg-safe", exclude_bottom=1) == [2]
    assert scored.select(1, "all") == [0, 1, 2]
    some = replace(
        scored, layers=(0, 2), vectors=gap.vectors[[0, 2]], spot_scores=scored.spot_scores[[0, 2]]
    )
    assert some.select(1, "gg-safe", exclude_bottom=1) == some.select(1) == [2]


def test_saved_and_loaded(library: SmallLibrary, gap: GapVectors, tmp_path: Path) -> None:
    gap = replace(gap, neighbours=2)
    path = tmp_path / "deep" / "gap.safetensors"
    gap.save(path)
    assert [one.name for one in path.parent.glob("[!.]*")] == ["gap.safetensors"]
    again = gapinit.GapVectors.load(str(path))
    for name in ("layers", "num_layers", "pairs", "pooling", "neighbours", "model_type"):
        assert getattr(again, name) == getattr(gap, name), name
    assert torch.equal(again.vectors, gap.vectors)
    assert torch.equal(again.spot_scores, gap.spot_scores)
    for one, other in zip(again.spectrum, gap.spectrum, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.modules.keys() == gap.modules.keys()
    assert all(torch.equal(again.modules[n].vector, gap.modules[n].vector) for n in gap.modules)
    assert [m.layer for m in again.modules.values()] == [m.layer for m in gap.modules.values()]
    assert again.fingerprint.digest == gap.fingerprint.digest
    found = again.fingerprint.compare(model_fingerprint(library.model()))
    assert found.difference is None and found.skipped == 0 and found.compared > 60

    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    assert metadata["format_version"] == 1 and metadata["pairs"] == 7
    assert metadata["model_type"] == "blip-2" and metadata["neighbours"] == 2
    assert metadata["pooling"] == "mean" and metadata["gapinit_version"]
    assert metadata["model_fingerprint"] == gap.fingerprint.digest


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read copies: the file will be overwritten, and the tensors would be windows into it."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def test_files_that_are_no_gap_are_refused_by_name(gap: GapVectors, tmp_path: Path) -> None:
    path = tmp_path / "gap.safetensors"
    gap.save(path)
    forget_digests(path)
    whole = path.read_bytes()
    tensors = read(path)
    text = {"format": '"gapinit.gap_vectors"', "format_version": "1"}

    def refused(message: str) -> None:
        with pytest.raises(gapinit.GapinitError) as error:
            GapVectors.load(path)
        assert str(error.value).startswith(f"{path}: ") and message in str(error.value)

    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("not a whole file of GapVectors.save")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * 100)
    refused("")  # a gap file of the workflow, damaged
    save_file(tensors, path)
    refused("(format None, expected 'gapinit.gap_vectors')")
    save_file(tensors, path, text | {"format_version": "2"})
    refused("(format_version 2, expected 1)")
    save_file(tensors, path, text)
    refused("('weights')")
    replace(gap, modules={}).save(path)
    forget_digests(path)
    damaged = read(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(damaged | {"vectors": damaged["vectors"][:2].contiguous()}, path, metadata)
    refused("vectors: 3 layers were measured, found shape (2, 32)")
    path.unlink()
    refused("no such file")

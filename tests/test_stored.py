"""States on disk: nothing of a model's precision is lost, and half of it takes half the room."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gapinit.artifacts.arrays import BITS, as_tensor, memory_map, stored_type, to_stored, widened
from gapinit.backbones import load_backbone
from gapinit.backbones.source import Source, write_source
from gapinit.data.images import load_image
from gapinit.evaluate.predict import extract_features
from gapinit.train.trunk.write import extract_trunk, read_trunk

from .small_backbone import SmallWorld, small_world

EDGES = [0.0, -0.0, 1.0, -1.5, 3.0e38, -3.0e38, 1e-38, 1e-45, float("inf"), float("nan")]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_lost(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([EDGES, torch.randn(10).tolist()]).to(dtype)
    kind = stored_type(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("values", data=to_stored(values, kind))
        assert file["values"].dtype.itemsize == values.element_size()
    with h5py.File(tmp_path / "a.h5") as file:
        mapped = memory_map(tmp_path / "a.h5", file["values"])
    np.testing.assert_array_equal(widened(mapped), values.float().numpy())
    torch.testing.assert_close(as_tensor(mapped).float(), values.float(), equal_nan=True)


def test_a_model_in_half_precision_keeps_half_the_bytes(world: SmallWorld, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.backbone, tmp_path / "half"))
    write_source(folder, Source(dtype="bfloat16"))
    backbone = load_backbone(folder)
    assert backbone.model.dtype == torch.bfloat16
    extract_trunk(folder, world.manifest, world.layers, "naive", tmp_path / "trunk.h5")
    trunk, whole = read_trunk(tmp_path / "trunk.h5"), read_trunk(world.trunk("naive"))
    assert trunk.prefix.rows.dtype == BITS and trunk.text is not None and whole.text is not None
    assert 2 * trunk.prefix.rows.nbytes == whole.prefix.rows.nbytes
    found, expected = trunk.batch([0, 7])["states"], whole.batch([0, 7])["states"]
    assert found.dtype == torch.bfloat16, "widened where the model is"
    assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)
    assert trunk.inputs["backbone"] != whole.inputs["backbone"], "another dtype, other states"
    extract_features(folder, world.manifest, tmp_path / "features.h5")
    images = [load_image(image.path) for image in world.images("test")]
    tokens = backbone.image_features(backbone.pixels(images)).tokens
    with h5py.File(tmp_path / "features.h5") as file:
        kept = as_tensor(memory_map(tmp_path / "features.h5", file["features"]))
    torch.testing.assert_close(kept.float(), tokens.float(), rtol=0.05, atol=0.05)
    assert kept.dtype == torch.bfloat16

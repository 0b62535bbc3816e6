"""`gapinit rehearse`: shapes on the meta device; every stage of small architectures on CPU."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from gapinit.cli import app
from gapinit.errors import GapinitError

from .architecture_cases import TINY, write_tiny

STAGES = ["build", "states", "gap", "features", "generate", "trunk", "adapter", "train"]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["rehearse", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_meta_prints_and_writes_the_shapes(repository, tmp_path):
    output = tmp_path / "shapes.json"
    folder = str(repository / "config")
    options = ["--backbone", "gemma3-4b", "--config-folder", folder, "--pairs", "100"]
    text = run(*options, "--output", str(output))
    found = json.loads(output.read_text())
    assert found["states_bytes"] == 2 * 34 * 100 * 2560 * 4
    assert found["adapted_layers"] == list(range(28, 34))
    # q: 2048, k and v: 1024, from 2560; o: 2560 from 2048; gate, up, down.
    layer = 4608 + 2 * 3584 + 4608 + 3 * 12800
    assert found["adapters"]["8"] == {"parameters": 6 * 8 * layer, "bytes": 6 * 8 * layer * 4}
    assert "4.30 B" in text and "self_attn.q_proj" in text and "2048 x 2560" in text


@pytest.mark.parametrize("family", TINY)
def test_every_stage_of_every_family_on_a_small_architecture(tmp_path, family):
    path, output = write_tiny(family, tmp_path), tmp_path / "record.json"
    options = ["--pairs=6", "--steps=2", "--layers=2", "--batch-size=3", f"--output={output}"]
    text = run("--architecture", str(path), "--device", "cpu", *options)
    assert all(stage in text for stage in STAGES)
    record = json.loads(output.read_text())
    assert record["options"]["layers"] == 2
    assert [stage["name"] for stage in record["stages"]] == STAGES
    assert len(record["loss"]) == 2
    # Random weights: the loss is about the logarithm of the vocabulary size.
    assert record["loss"][0] == pytest.approx(math.log(500), rel=0.1)
    assert record["versions"]["torch"] == torch.__version__
    counts = {stage["name"]: stage["count"] for stage in record["stages"]}
    assert 4 <= counts["generate"] <= 4 * 32 and counts["train"] == 6


def test_wrong_options_are_errors_before_the_model_is_built(repository, tmp_path, monkeypatch):
    path = str(write_tiny("qwen2_vl", tmp_path))
    with pytest.raises(GapinitError, match="either --backbone NAME or --architecture FILE"):
        run()
    with pytest.raises(GapinitError, match="--layers: 9 layers, but 'tiny-qwen2_vl' has 4"):
        run("--architecture", path, "--layers", "9")
    with pytest.raises(GapinitError, match="unknown device 'tpux'"):
        run("--architecture", path, "--layers", "2", "--device", "tpux")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(GapinitError, match="--device cuda: PyTorch .* sees no GPUs here"):
        run("--architecture", path, "--layers", "2", "--device", "cuda")
    with pytest.raises(GapinitError, match="no config folder .*--config-folder"):
        run("--backbone", "gemma3-4b", "--config-folder", str(tmp_path))
    monkeypatch.setattr("gapinit.workflow.doctor.rehearse.free_memory", lambda device: 10_000)
    with pytest.raises(GapinitError, match="needed, 10.0 kB free on cpu"):
        run("--architecture", path, "--layers", "2", "--device", "cpu")

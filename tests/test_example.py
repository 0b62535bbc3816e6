"""`examples/blip2_gap_init.py` runs as it is."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import gapinit

from .small_library import SmallLibrary, logits


def example(repository: Path) -> Any:
    spec = util.spec_from_file_location("example", repository / "examples" / "blip2_gap_init.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs(
    library: SmallLibrary,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for index, (image, caption) in enumerate(library.pairs):
        image.save(images / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    script = example(repository)
    output = tmp_path / "adapter"
    histories = []

    class Trainer(script.Trainer):  # type: ignore[misc, name-defined]
        def train(self) -> Any:
            result = super().train()
            gap = self.callback_handler.callbacks[-2]._gap  # the last one prints
            found = gapinit.alignment(self.model, gap)
            mean = sum(map(abs, found.values())) / len(found)
            assert self.state.log_history[-2]["gap_alignment"] == pytest.approx(mean, abs=1e-9)
            histories.append(self.state.log_history)
            return result

    monkeypatch.setattr(script, "Trainer", Trainer)
    script.main(
        ["--model", str(library.folder), "--images", str(images), "--output", str(output)]
        + ["--calibration", "5", "--layers", "2", "--steps", "3", "--batch-size", "2"]
    )
    printed = capsys.readouterr().out
    assert "first column of B along the gap" in printed and "gap_alignment" in printed
    steps = [entry for entry in histories[0] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    assert all(0.9 < entry["gap_alignment"] <= 1 for entry in steps)
    assert all("gap_alignment" not in entry for entry in histories[0] if "loss" not in entry)
    adapted = PeftModel.from_pretrained(library.model(), output)
    assert not torch.equal(logits(adapted, library), logits(library.model(), library))

"""What the tests of caption scores share: files in the real formats, and stand-ins for Java."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.java import JAVA_VARIABLE

FAST = ("cider", "bleu", "rouge")
OFFICIAL_NAMES = ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L")


def coco(captions: dict[Any, list[str]]) -> dict[str, Any]:
    annotations = [
        {"image_id": image, "id": f"{image}-{number}", "caption": caption}
        for image, group in captions.items()
        for number, caption in enumerate(group)
    ]
    return {"images": [{"id": image} for image in captions], "annotations": annotations}


def coco_results(captions: dict[Any, str]) -> list[dict[str, Any]]:
    return [{"image_id": image, "caption": caption} for image, caption in captions.items()]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def score(
    folder: Path, references: Any, predictions: Any, *, metrics: Any = FAST, java: Any = None
) -> dict[str, Any]:
    """Write both files and score them; the returned scores are those on disk."""
    output = folder / "scores.json"
    with pytest.MonkeyPatch.context() as patch:
        if java is not None:
            patch.setenv(JAVA_VARIABLE, str(java))
        (returned,) = score_captions(
            write(folder / "references.json", references),
            [write(folder / "predictions.json", predictions)],
            [output],
            metrics,
        )
    assert json.loads(output.read_text(encoding="utf-8")) == returned
    return returned


def refusal(folder: Path, references: Any, predictions: Any, **options: Any) -> str:
    """Return the message with which the two files are refused; nothing may be written."""
    with pytest.raises(GapinitError) as caught:
        score(folder, references, predictions, **options)
    assert not (folder / "scores.json").exists()
    return str(caught.value)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not collected yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # ended just now, or a system without /proc
        return not Path("/proc").exists()
    return state != "Z"

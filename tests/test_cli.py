"""The command line: a stage a command, and one message for a user's mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gapinit.cli import main


def gapinit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command."""
    return subprocess.run(
        [sys.executable, "-m", "gapinit", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_every_stage_in_order() -> None:
    text = gapinit("--help").stdout
    stages = ["states", "gap", "layers", "trunk", "train", "features", "predict", "report"]
    places = [text.index(f"│ {stage} ") for stage in stages]
    assert places == sorted(places)


def test_the_log_file_holds_what_the_terminal_showed_and_ends_with_the_time(
    tmp_path: Path,
) -> None:
    log = tmp_path / "a" / "version.log"
    done = gapinit(f"--log-file={log}", "methods")
    assert done.returncode == 0, done.stderr
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    assert re.fullmatch(r"took \d+\.\d\d s, \d+\.\d\d s of CPU time", last)
    assert "of CPU time" not in done.stderr
    done = gapinit(f"--log-file={log}", "gap", "--states=no.h5", "--size=16", "--output=x")
    assert done.returncode == 1
    assert log.read_text(encoding="utf-8") == done.stderr


def test_captions_are_scored(tmp_path: Path) -> None:
    references = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": 1, "image_id": 1, "caption": "a red circle above a blue square"},
            {"id": 2, "image_id": 2, "caption": "a green star on a white ground"},
        ],
    }
    predictions = [
        {"image_id": 1, "caption": "a red circle above a blue square"},
        {"image_id": 2, "caption": "a green star on a white ground"},
    ]
    (tmp_path / "r.json").write_text(json.dumps(references))
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    files = [f"--{name}={tmp_path / name[0]}.json" for name in ("references", "predictions")]
    done = gapinit("score", "captions", *files, f"--output={tmp_path / 's.json'}", "--metrics=bleu")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["metrics"]["Bleu_4"] == pytest.approx(100.0, abs=1e-4)
    assert len(scores["per_sample"]) == 2


STATES = ("states", "--backbone=no", "--manifest=no.json", "--pairs=4")
TRAIN = ("train", *(f"--{name}=no" for name in ("backbone", "trunk", "layers", "gap")))
RUN = "mini/scenes/random-b/rank1_naive_epochs2/no-gap/seed42"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "captions", "--references=no.json", "--predictions=no.json"], "no.json"),
        (["gap", "--states=no.h5", "--size=16"], "no.h5"),
        (["gap", "--states=no.h5", "--size=16", "--smoothing=much"], "unknown value 'much'"),
        (["layers", "--gap=no.h5", "--num-layers=2"], "no.h5"),
        (["data", "prepare", "--dataset=no.yaml"], "no.yaml: no such file"),
        (["figure", "figure9"], "unknown value 'figure9'"),
        ([*STATES, "--device=nowhere"], "--device: unknown device 'nowhere', expected cpu"),
        ([*STATES, "--device=cuda:99"], "--device cuda:99: PyTorch"),
        ([*TRAIN, "--run=somewhere/else"], "'somewhere/else' is not the path of a run"),
        ([*TRAIN, f"--run={RUN}", "--recipe=no.yaml"], "no.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    command = ["gapinit", *arguments, f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_results_has_no_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gapinit", "summary", "nowhere"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: nowhere/configuration.json: no such file")

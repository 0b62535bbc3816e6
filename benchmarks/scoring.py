"""Scoring captions without METEOR: ours against pycocoevalcap called in sequence.

5,000 images with 5 references each. Both programs read files, tokenise with the same Java program
and compute CIDEr, BLEU-1 to 4 and ROUGE-L. The program checks that all scores, of the corpus and of
each image, are equal to the last digit. The peer calls the package as a user does: PTBTokenizer for
references and predictions, then Bleu, Rouge, Cider. The programs alternate; the table gives
medians. A third measurement scores several prediction files in one call of gapinit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.measure import Result, Spread, Target, ratios
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.java import find_java

METRICS = ("cider", "bleu", "rouge")
SEVERAL = 5


def write_captions(folder: Path, images: int, files: int) -> tuple[Path, list[Path]]:
    """Write references and predictions of random words, with frequencies as in a language."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bcdfghklmnprst" for b in "aeiou" for c in "dgklmnprst bx"]
    weights = [1 / (rank + 5) for rank in range(len(words))]

    def caption() -> list[str]:
        return draw.choices(words, weights, k=draw.randint(7, 15))

    groups = [[caption() for _ in range(5)] for _ in range(images)]
    content = {
        "images": [{"id": number} for number in range(images)],
        "annotations": [
            {"id": 5 * number + place, "image_id": number, "caption": " ".join(text) + "."}
            for number, group in enumerate(groups)
            for place, text in enumerate(group)
        ],
    }
    references = folder / "references.json"
    references.write_text(json.dumps(content), encoding="utf-8")
    paths = []
    for number in range(files):
        said = [" ".join(draw.choice(group)[:8] + caption()[:3]) for group in groups]
        entries = [{"image_id": image, "caption": text} for image, text in enumerate(said)]
        paths.append(folder / f"predictions{number}.json")
        paths[-1].write_text(json.dumps(entries), encoding="utf-8")
    return references, paths


def peer(references: Path, predictions: Path) -> dict[str, Any]:
    """Score as the example of the package does."""
    gts: dict[int, list[dict[str, str]]] = {}
    for entry in json.loads(references.read_text(encoding="utf-8"))["annotations"]:
        gts.setdefault(entry["image_id"], []).append({"caption": entry["caption"]})
    said = json.loads(predictions.read_text(encoding="utf-8"))
    res = {entry["image_id"]: [{"caption": entry["caption"]}] for entry in said}
    tokenizer = PTBTokenizer()
    with contextlib.redirect_stdout(io.StringIO()):
        tokens, spoken = tokenizer.tokenize(gts), tokenizer.tokenize(res)
        bleu = Bleu(4).compute_score(tokens, spoken)
        rouge = Rouge().compute_score(tokens, spoken)
        cider = Cider().compute_score(tokens, spoken)
    return {
        "CIDEr": (cider[0], list(cider[1])),
        "ROUGE_L": (rouge[0], list(rouge[1])),
        **{f"Bleu_{n + 1}": (bleu[0][n], bleu[1][n]) for n in range(4)},
    }


def ours(references: Path, predictions: list[Path], folder: Path) -> dict[str, Any]:
    """Score files with gapinit; return the scores of the first file."""
    outputs = [folder / f"scores{number}.json" for number in range(len(predictions))]
    found = score_captions(references, predictions, outputs, METRICS)[0]
    return {
        name: (value, [entry[name] for entry in found["per_sample"]])
        for name, value in found["metrics"].items()
    }


def main() -> None:
    """Measure, print and write `results/scoring.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    # The peer calls `java` by that name.
    os.environ["PATH"] = f"{find_java().parent}{os.pathsep}{os.environ['PATH']}"
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references, predictions = write_captions(folder, options.images, SEVERAL)
        programs: dict[str, Callable[[], Any]] = {
            "gapinit": lambda: ours(references, predictions[:1], folder),
            "pycocoevalcap": lambda: peer(references, predictions[0]),
            f"gapinit, of {SEVERAL}": lambda: ours(references, predictions, folder),
        }
        for repeat in range(-1, options.repeats):  # the first is a warm-up
            found = {}
            for program, run in programs.items():
                start, used = time.perf_counter(), _cpu()
                found[program] = run()
                if repeat >= 0:
                    taken = (time.perf_counter() - start, _cpu() - used)
                    times.setdefault(program, []).append(taken)
            for metric, (corpus, values) in found["pycocoevalcap"].items():
                scaled = (100 * float(corpus), [100 * float(value) for value in values])
                assert found["gapinit"][metric] == scaled, f"{metric} differs"
    wall = {name: [one for one, _ in taken] for name, taken in times.items()}
    cpu = {name: [one for _, one in taken] for name, taken in times.items()}
    together = f"gapinit, of {SEVERAL}"
    target = Target(
        f"scoring {options.images:,} captions without METEOR",
        "pycocoevalcap called in sequence",
        ratios(wall["gapinit"], wall["pycocoevalcap"]),
        "at least",
        2.0,
    )
    measured: dict[str, Spread | float | int | str] = {
        f"{name}, s": Spread(taken) for name, taken in wall.items()
    }
    measured |= {f"{name}, CPU s": Spread(taken) for name, taken in cpu.items()}
    measured["the same in CPU time"] = ratios(cpu["gapinit"], cpu["pycocoevalcap"])
    measured[f"a file of {SEVERAL} in one call"] = ratios(
        [one / SEVERAL for one in wall[together]], wall["pycocoevalcap"]
    )
    notes = [
        "Every score, of the corpus and of each image, equals pycocoevalcap's to the last digit."
    ]
    Result("scoring", [target], measured, {"references_an_image": 5}, notes).write()


def _cpu() -> float:
    """Return the seconds that this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()

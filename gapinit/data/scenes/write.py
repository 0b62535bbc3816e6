"""Write a `scenes` dataset in COCO's, Flickr30k's or the pretraining format."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import atomic_file, write_json
from gapinit.data.references import write_lines
from gapinit.data.scenes.corpus import corpus_line
from gapinit.data.scenes.items import Item, draw_coco, draw_images, stream
from gapinit.data.scenes.language import alt_text, captions, ood_caption, target_caption
from gapinit.data.scenes.settings import Layout, ScenesSettings
from gapinit.data.scenes.world import Scene
from gapinit.data.scenes.write_questions import write_llava, write_okvqa, write_pope, write_vqa
from gapinit.errors import GapinitError

SETTINGS_FILE = "scenes.json"
FOLDERS = ("images", "flickr30k-images", "annotations")
CAPTIONS_PER_IMAGE = 5


def make_scenes(settings: ScenesSettings, output: Path) -> None:
    """Write the dataset of `settings` into the folder `output`.

    An earlier output of this function is replaced; any other folder with images or annotations is
    an error.
    """
    present = [output / name for name in FOLDERS if (output / name).exists()]
    if present and not (output / SETTINGS_FILE).is_file():
        raise GapinitError(
            f"{output}: holds '{present[0].name}', which gapinit did not make (no {SETTINGS_FILE} "
            "in the folder). Choose another output folder, or empty this one."
        )
    for folder in present:
        shutil.rmtree(folder)
    write_json(output / SETTINGS_FILE, settings.model_dump())
    _WRITERS[settings.layout](settings, output)


def _sentences(
    settings: ScenesSettings, item: Item, style: Callable[[Scene, random.Random], str]
) -> list[str]:
    rng = stream(settings, item.split, item.number, "captions")
    return captions(item.scene, style, rng, CAPTIONS_PER_IMAGE)


def _karpathy_image(imgid: int, split: str, texts: list[str], filename: str) -> dict[str, Any]:
    """Return one entry of a Karpathy split; every image has the same number of sentences."""
    sentids = [imgid * CAPTIONS_PER_IMAGE + k for k in range(len(texts))]
    sentences = [
        {
            "tokens": re.findall(r"[a-z0-9]+", text.lower()),
            "raw": text,
            "imgid": imgid,
            "sentid": sentid,
        }
        for text, sentid in zip(texts, sentids, strict=True)
    ]
    head = {"sentids": sentids, "filename": filename, "imgid": imgid, "split": split}
    return {**head, "sentences": sentences}


def _write_coco(settings: ScenesSettings, output: Path) -> None:
    karpathy = []
    for imgid, (item, cocoid, path) in enumerate(draw_coco(settings, output)):
        texts = _sentences(settings, item, target_caption)
        entry = _karpathy_image(imgid, item.split, texts, path.partition("/")[2])
        karpathy.append({"filepath": item.release, **entry, "cocoid": cocoid})
    for filepath in ("train2014", "val2014"):
        chosen = [entry for entry in karpathy if entry["filepath"] == filepath]
        file = output / "annotations" / f"captions_{filepath}.json"
        write_json(file, _coco_captions(chosen, settings))
    write_json(output / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})


def _coco_captions(entries: list[dict[str, Any]], settings: ScenesSettings) -> dict[str, Any]:
    size = settings.image_size
    return {
        "info": {
            "description": f"procedural dataset {settings.name}, seed {settings.seed}",
            "url": "",
            "version": "1.0",
            "year": 2014,
            "contributor": "gapinit",
            "date_created": "2014-01-01 00:00:00",
        },
        "images": [
            {
                "license": 1,
                "file_name": entry["filename"],
                "coco_url": "",
                "height": size,
                "width": size,
                "date_captured": "2014-01-01 00:00:00",
                "flickr_url": "",
                "id": entry["cocoid"],
            }
            for entry in entries
        ],
        "licenses": [{"url": "", "id": 1, "name": "Apache-2.0"}],
        "annotations": [
            {
                "image_id": entry["cocoid"],
                "id": sentence["sentid"] + 1,
                "caption": sentence["raw"],
            }
            for entry in entries
            for sentence in entry["sentences"]
        ],
    }


def _write_flickr30k(settings: ScenesSettings, output: Path) -> None:
    folder, ids = output / "flickr30k-images", range(10_000_000, 8_200_000_000)
    karpathy = []
    for imgid, (item, _, path) in enumerate(draw_images(settings, folder, "{id}.jpg", ids)):
        texts = _sentences(settings, item, ood_caption)
        karpathy.append(_karpathy_image(imgid, item.split, texts, path))
    write_json(output / "dataset_flickr30k.json", {"images": karpathy, "dataset": "flickr30k"})


def _write_pretraining(settings: ScenesSettings, output: Path) -> None:
    lines = []
    for item, _, path in draw_images(settings, output / "images", "{number:08d}.jpg"):
        rng = stream(settings, item.split, item.number, "alt-text")
        for _ in range(settings.alt_texts_per_image):
            lines.append({"image": f"images/{path}", "text": alt_text(item.scene, rng)})
    write_lines(output / "alt_text.jsonl", lines)
    rng = stream(settings, "corpus")
    corpus = [corpus_line(rng) + "\n" for _ in range(settings.corpus_lines)]
    with atomic_file(output / "corpus.txt") as temporary:
        temporary.write_text("".join(corpus), encoding="utf-8", newline="\n")


_WRITERS: dict[Layout, Callable[[ScenesSettings, Path], None]] = {
    "coco": _write_coco,
    "flickr30k": _write_flickr30k,
    "pretraining": _write_pretraining,
    "vqa": write_vqa,
    "okvqa": write_okvqa,
    "pope": write_pope,
    "llava": write_llava,
}

"""What is damaged: small good files of every kind, and what their stages make of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from gapinit.adapters.files import load_adapter
from gapinit.backbones import load_backbone
from gapinit.backbones.hub import HubSettings
from gapinit.config.yaml_files import read_settings
from gapinit.data.check_target import check_target
from gapinit.data.dataset import read_dataset_settings
from gapinit.data.downloads import read_downloads
from gapinit.data.manifest import read_manifest
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.captions import score_captions
from gapinit.evaluate.metrics.pope import score_pope
from gapinit.evaluate.metrics.vqa import score_vqa
from gapinit.gap.gap_file import read_gap
from gapinit.gap.layers import write_layers
from gapinit.report.page import make_report
from gapinit.states.states import extract_states
from gapinit.tables.measures import read_steps
from gapinit.train.trunk.write import extract_trunk, read_trunk
from gapinit.workflow.plan import read_plan

from ..dataset_folders import GOOD
from ..small_backbone import LAYERS as LAYERS
from ..small_backbone import SmallWorld
from .goods import build_paths, make_gap, make_predictions

Call = Callable[[Path], Any]


@dataclass(frozen=True)
class Target:
    """A good file below a folder, how it is damaged, and what reads it."""

    file: str
    kind: str
    """json, lines, yaml, hdf5, safetensors, image or text."""
    call: Call
    """Given the folder, returns something that can be compared."""
    folder: str
    """Which of the good folders."""
    untrusted: bool = False
    """Whether others make such a file, so that no digest stands beside it."""


def digest(*values: Any) -> str:
    """Return what arrays, tensors and JSON values are compared by."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().float().numpy()
        if isinstance(value, np.ndarray):
            state.update(
                f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
            )
        else:
            state.update(json.dumps(value, sort_keys=True, default=str).encode())
    return state.hexdigest()


def gap_of(root: Path) -> str:
    output = root / "out.h5"
    make_gap(root / "states.h5", output)
    found = read_gap(output)
    output.unlink()
    (root / ".out.h5.sha256").unlink()
    return digest(found.gap, found.score)


def gap_read(root: Path) -> str:
    found = read_gap(root / "gap.h5")
    write_layers(root / "gap.h5", root / "out.json", 1, 1)
    chosen = (root / "out.json").read_bytes()
    (root / "out.json").unlink()
    (root / ".out.json.sha256").unlink()
    parts = [value for name, value in vars(found).items() if name != "inputs" and value is not None]
    return digest(*parts, chosen.decode())


def trunk_read(root: Path) -> str:
    trunk = read_trunk(root / "trunk_naive.h5")
    batch = trunk.batch(list(range(len(trunk))))
    return digest(trunk.first_layer, *(batch[name] for name in sorted(batch)))


def predictions(root: Path, adapter: bool = False) -> str:
    output = root / "out.json"
    make_predictions(root, output, adapter)
    found = output.read_text()
    output.unlink()
    (root / ".out.json.sha256").unlink()
    return digest(found)


def adapter_read(root: Path) -> str:
    model = load_adapter(load_backbone(root / "backbone"), root / "run/adapter")
    values = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise AssertionError("an adapter with NaN was loaded without a word")
    return digest(sorted(values), *(values[name] for name in sorted(values)))


def backbone_read(root: Path) -> str:
    model = load_backbone(root / "backbone")
    data = read_manifest(root / "data/manifest.json")
    from gapinit.data.images import load_image

    looked = model.look([load_image(data.images("test")[0])])
    ids = model.encode_captions(["a red square"], 8)
    return digest(looked.tokens, ids, *model.model.state_dict().values())


def states_made(root: Path) -> str:
    small = SmallWorld(root)
    output = root / "out.h5"
    extract_states(small.backbone, small.manifest, output, pairs=20, seed=0)
    import h5py

    with h5py.File(output, "r") as file:
        found = digest(file["vision"][:], file["text"][:])
    output.unlink()
    (root / ".out.h5.sha256").unlink()
    return found


def trunk_made(root: Path) -> str:
    small = SmallWorld(root)
    output = root / "out.h5"
    extract_trunk(small.backbone, small.manifest, small.layers, "naive", output, max_tokens=32)
    found = read_trunk(output)
    output.unlink()
    (root / ".out.h5.sha256").unlink()
    return digest(found.first_layer, np.asarray(found.labels))


def report_made(root: Path) -> str:
    tree = build_paths(root)
    output = root / "out.html"
    make_report(**tree, output=output)
    output.unlink()
    (root / ".out.html.sha256").unlink()
    return "made"


def scored(root: Path, what: str) -> str:
    output = root / "out.json"
    if what == "captions":
        score_captions(root / "captions.json", root / "said.json", output, ["cider", "bleu"])
    elif what == "vqa":
        names = ("questions.json", "annotations.json", "answered.json")
        score_vqa(*(root / name for name in names), output)
    else:
        score_pope(root / "pope_random.json", root / "pope_said.json", output)
    metrics = json.loads(output.read_text())["metrics"]
    output.unlink()
    (root / ".out.json.sha256").unlink()
    return digest(metrics)


def checked(root: Path) -> str:
    """Check a dataset folder; its defects are the message."""
    found = check_target(root)
    if found.defects:
        raise GapinitError("\n".join(str(defect) for defect in found.defects))
    return "no defects"


def steps_read(root: Path) -> str:
    steps = read_steps(root / "run/steps.csv")
    return digest(*(np.asarray(steps[name]) for name in sorted(steps)))


def plan_read(root: Path) -> str:
    plan = read_plan(root, root / "test.yaml")
    return digest([run.path for run in plan.runs()], plan.as_json())


def settings_read(read: Callable[[Path], Any], file: str) -> Call:
    return lambda root: digest(str(read(root / file)))


def _json(file: str, call: Call, folder: str, **more: Any) -> Target:
    return Target(file, "json", call, folder, **more)


def image_in(goods: Mapping[str, Path], folder: str) -> str:
    """Return the first image of a good folder, below it."""
    images = sorted(p for p in goods[folder].rglob("*.jpg"))
    return images[0].relative_to(goods[folder]).as_posix()


def targets(goods: Mapping[str, Path]) -> list[Target]:
    """Return everything that is damaged."""
    run = "run/adapter/"
    world = [
        Target("states.h5", "hdf5", gap_of, "world"),
        Target("gap.h5", "hdf5", gap_read, "world"),
        Target("trunk_naive.h5", "hdf5", trunk_read, "world"),
        Target("features.h5", "hdf5", predictions, "world"),
        Target("backbone/model.safetensors", "safetensors", backbone_read, "world"),
        Target(f"{run}adapter_model.safetensors", "safetensors", adapter_read, "world"),
        _json(f"{run}adapter_config.json", adapter_read, "world"),
        _json("backbone/config.json", backbone_read, "world", untrusted=True),
        _json("backbone/tokenizer.json", backbone_read, "world", untrusted=True),
        _json("backbone/tokenizer_config.json", backbone_read, "world", untrusted=True),
        _json("layers.json", trunk_made, "world"),
        _json("data/manifest.json", states_made, "world"),
        Target("run/steps.csv", "text", steps_read, "world"),
    ]
    processor = [p.name for p in sorted(goods["world"].glob("backbone/*processor*.json"))]
    world += [
        _json(f"backbone/{name}", backbone_read, "world", untrusted=True) for name in processor[:1]
    ]
    world.append(Target(_train_image(goods["world"]), "image", states_made, "world"))
    scores = [
        _json("captions.json", lambda r: scored(r, "captions"), "scores"),
        _json("said.json", lambda r: scored(r, "captions"), "scores"),
        _json("questions.json", lambda r: scored(r, "vqa"), "scores"),
        _json("annotations.json", lambda r: scored(r, "vqa"), "scores"),
        _json("answered.json", lambda r: scored(r, "vqa"), "scores"),
        Target("pope_random.json", "lines", lambda r: scored(r, "pope"), "scores", untrusted=True),
        Target("pope_said.json", "lines", lambda r: scored(r, "pope"), "scores", untrusted=True),
    ]
    report = [
        Target("6_tables/table2.csv", "text", report_made, "report"),
        Target("claims.csv", "text", report_made, "report"),
        Target("6_tables/runs.csv", "text", report_made, "report"),
        _json("1_data/scenes/manifest.json", report_made, "report"),
        _json(_first(goods["report"], "**/*.scores.json"), report_made, "report"),
        _json(_first(goods["report"], "**/run.json"), report_made, "report"),
    ]
    configs = [
        Target("test.yaml", "yaml", plan_read, "config", untrusted=True),
        Target("default.yaml", "yaml", plan_read, "config", untrusted=True),
        Target("experiments/test-captioning.yaml", "yaml", plan_read, "config", untrusted=True),
        Target("backbones/mini-blip2-test.yaml", "yaml", plan_read, "config", untrusted=True),
        Target("datasets/scenes-test.yaml", "yaml", plan_read, "config", untrusted=True),
        *(
            Target(file, "yaml", settings_read(read, file), "config", untrusted=True)
            for file, read in (
                ("downloads.yaml", read_downloads),
                ("datasets/coco.yaml", read_dataset_settings),
                ("backbones/blip2-opt-2.7b.yaml", lambda path: read_settings(path, HubSettings)),
            )
        ),
    ]
    data = [
        Target(path.relative_to(goods[name]).as_posix(), _kind(path), checked, name, untrusted=True)
        for name in GOOD
        if name != "everything"
        for path in sorted(goods[name].rglob("*.json*"))
        if path.name[0] != "."
    ]
    data += [
        Target(image_in(goods, name), "image", checked, name, untrusted=True)
        for name in ("karpathy", "llava")
    ]
    return [*world, *scores, *report, *configs, *data]


def _train_image(root: Path) -> str:
    data = read_manifest(root / "data/manifest.json")
    return data.images("train")[0].relative_to(root).as_posix()


def _first(root: Path, pattern: str) -> str:
    return next(iter(sorted(root.glob(pattern)))).relative_to(root).as_posix()


def _kind(path: Path) -> str:
    try:
        json.loads(path.read_text())
    except ValueError:
        return "lines"
    return "json"


def content_of(path: Path, kind: str) -> Any:
    """Return the value in a JSON, JSON-lines or YAML file."""
    text = path.read_text(encoding="utf-8")
    if kind == "yaml":
        return json.loads(json.dumps(yaml.safe_load(text), default=str))
    return json.loads(text if kind == "json" else text.split("\n")[0])

"""`gapinit doctor`: sizes computed by hand, missing items, merged configurations."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gapinit.backbones.facts import backbone_facts
from gapinit.cli import app
from gapinit.workflow import doctor
from gapinit.workflow.doctor import Gpu, examine
from gapinit.workflow.doctor.costs import (
    Batch,
    forward_flops,
    output_flops,
    packed_flops,
    predict_bytes,
    states_bytes,
    step_seconds,
    tail_parameters,
    train_bytes,
)
from gapinit.workflow.doctor.jobs import plan_jobs
from gapinit.workflow.doctor.sizes import dataset_size, read_sizes
from gapinit.workflow.plan import merged, read_plan

from .workflow_calls import make_photographs

GB = 10**9
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch):
    """No GPU, an empty hub cache, no token, much free disk space."""
    monkeypatch.setattr(doctor, "_gpus", lambda: [])
    monkeypatch.setattr("gapinit.workflow.doctor.sources.hub_cache", lambda: tmp_path / "hub")
    monkeypatch.setattr("gapinit.workflow.doctor.sources.hub_token", lambda: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 10**15))


@pytest.fixture
def diagnose(repository, tmp_path):
    def diagnosed(name: str, *given: str):
        return examine(
            read_plan(repository / "config", *arguments(repository, tmp_path, name, given))
        )

    return diagnosed


def arguments(repository: Path, folder: Path, name: str, given=()):
    places = [f"results={folder / 'results'}", f"data={folder / 'data'}"]
    return repository / "config" / f"{name}.yaml", [*places, *given]


def bytes_of(found, kind: str) -> dict[str, list[int]]:
    sizes: dict[str, list[int]] = {}
    for need in found.needs:
        if need.kind == kind:
            sizes.setdefault(need.name, []).append(need.bytes)
    return sizes


def test_disk_of_the_small_configuration_by_hand(diagnose):
    found = diagnose("test")
    # 3 layers of width 32; 24 calibration pairs and as many held out; float32.
    states = bytes_of(found, "states")
    assert states["mini-blip2-test, scenes-test"] == [2 * 3 * 48 * 32 * 4]
    # 120 images of 4 query tokens, 5 captions each, of BOS and 12 tokens.
    trunks = bytes_of(found, "trunk")
    # Two numbers per token and per text, one per image, and one more for each list of offsets.
    numbers = 8 * (2 * 600 * 13 + 2 * 600 + 1 + 120 + 1)
    states = (120 * 4 + 600 * 13) * 32 * 4
    assert trunks["mini-blip2-test, scenes-test, naive"] == [states + numbers]
    for name in trunks:
        if name.startswith("mini-blip2-test, scenes-test-instruct, all"):
            assert trunks[name][0] - 40 * 4 * 32 * 4 == pytest.approx(8 * 2 * 40 * 60, rel=0.5)
    features = bytes_of(found, "features")
    assert features["mini-blip2-test, scenes-test"] == [24 * 4 * 32 * 4]
    assert all(one.state == "made here" for one in found.weights)
    assert found.files == [] and found.missing == []


def test_a_run_is_its_adapter_and_its_step_log(diagnose):
    found = diagnose("test")
    paths = {need.path.parent: need.bytes for need in found.needs if need.kind == "runs"}
    run = next(
        run
        for run in found.jobs.trained
        if (run.method, run.dataset, run.layers, run.rank)
        == ("gap-init", "scenes-test", "naive", 1)
        and run.backbone == "mini-blip2-test"
    )
    # OPT: four matrices 32 x 32, two of 128 x 32; 600 captions in batches of 16.
    adapter = 4 * (32 + 32) + 2 * (128 + 32)
    steps = 38 * run.epochs
    size = next(count for path, count in paths.items() if str(path).endswith(run.path))
    assert size == adapter * 4 + steps * 60


def test_the_paper_at_full_scale_by_hand(diagnose):
    found = diagnose("paper")
    states, trunks = bytes_of(found, "states"), bytes_of(found, "trunk")
    assert states["blip2-opt-2.7b, coco-calibration"] == [2 * 32 * 1280 * 2560 * 4]
    tokens = 566435 * (1 + 12)
    numbers = 8 * (2 * tokens + 2 * 566435 + 1 + 113287 + 1)
    assert trunks["blip2-opt-2.7b, coco, all"] == [113287 * 32 * 2560 * 2 + numbers]
    assert trunks["blip2-opt-2.7b, coco, naive"] == [(113287 * 32 + tokens) * 2560 * 2 + numbers]
    tokens = 566435 * (18 + 12)
    numbers = 8 * (2 * tokens + 2 * 566435 + 1 + 3 * 113287 + 1)
    assert trunks["qwen2-vl-7b-instruct, coco, naive"] == [
        (113287 * (15 + 391) + tokens) * 3584 * 2 + numbers
    ]
    features = bytes_of(found, "features")
    assert features["gemma3-4b, coco"] == [5000 * 256 * 2560 * 2]
    fetched = {file.name: file for file in found.files if file.state == "to fetch"}
    assert fetched["coco-train2014"].bytes == 13510573713
    assert "llava-instruct-150k" not in fetched  # configured, but no table trains on it
    weights = {one.backbone: one for one in found.weights}
    assert weights["blip2-opt-2.7b"].bytes == pytest.approx(15.0 * GB, rel=0.01)
    assert weights["gemma3-4b"].gated and not weights["qwen2-vl-7b-instruct"].gated
    whole = sum(need.bytes for need in found.needs)
    whole += sum((file.bytes if file.name in fetched else 4500000000) for file in found.files)
    whole += sum(file.unpacked for file in found.files) + sum(it.bytes for it in weights.values())
    assert sum(disk.bytes for disk in found.disks) == whole


def test_missing_items_are_listed(diagnose, monkeypatch):
    missing = "\n".join(diagnose("paper").missing)
    assert "GPU: none" in missing
    assert "flickr30k-images has to be downloaded by hand" in missing
    assert "token: google/gemma-3-4b-it" in missing
    assert "disk" not in missing
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, GB))
    monkeypatch.setattr(doctor, "_gpus", lambda: [Gpu("small", 16 * GB)])
    monkeypatch.setattr("gapinit.workflow.doctor.sources.hub_token", lambda: True)
    missing = "\n".join(diagnose("paper").missing)
    assert "1.0 GB free" in missing
    assert "GPU memory: train of blip2-opt-2.7b" in missing
    assert "token" not in missing and "GPU: none" not in missing


def test_existing_files_are_not_downloaded_again(diagnose, tmp_path):
    (tmp_path / "data" / "flickr30k" / "flickr30k-images").mkdir(parents=True)
    (tmp_path / "data" / "unpacked").mkdir()
    (tmp_path / "data" / "unpacked" / "coco-train2014.json").write_text("{}")
    snapshot = tmp_path / "hub" / "models--google--gemma-3-4b-it" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    with (snapshot / "model.safetensors").open("wb") as file:
        file.truncate(round(8.6 * GB))
    trunk = tmp_path / "results" / "paper" / "4_train" / "trunk" / "gemma3-4b" / "coco"
    trunk.mkdir(parents=True)
    (trunk / "naive.h5").touch()
    found = diagnose("paper", "shards={trunk: 1}")
    states = {file.name: file.state for file in found.files}
    assert states["flickr30k-images"] == states["coco-train2014"] == "there"
    assert states["coco-val2014"] == "to fetch"
    assert {one.backbone: one.state for one in found.weights}["gemma3-4b"] == "there"
    assert [need.path for need in found.needs if need.there] == [trunk / "naive.h5"]
    assert not any("token" in problem or "flickr" in problem for problem in found.missing)


def test_a_local_folder_needs_no_download(diagnose):
    found = diagnose("paper", "folders={okvqa: /data/okvqa}")
    assert not any(file.name.startswith("okvqa") for file in found.files)


def test_missing_java_and_an_offline_hub_are_listed(diagnose, monkeypatch):
    monkeypatch.setenv("GAPINIT_JAVA", "/no/java")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = diagnose("paper")
    assert any("/no/java" in problem for problem in found.missing)
    assert any("HF_HUB_OFFLINE" in note for note in found.notes)


def test_a_backbone_without_an_architecture_file_is_left_out(repository, diagnose, monkeypatch):
    from gapinit.workflow.doctor import _facts

    monkeypatch.setattr(
        doctor,
        "_facts",
        lambda names, folder: _facts([name for name in names if "qwen" not in name], folder),
    )
    found = diagnose("paper")
    assert any("qwen2-vl-7b-instruct" in note for note in found.notes)
    assert not any("qwen" in need.name for need in found.needs)


def test_jobs_are_the_plans(repository, tmp_path):
    plan = read_plan(repository / "config", *arguments(repository, tmp_path, "paper"))
    jobs = plan_jobs(plan)
    assert jobs.trained == plan.trained()
    scores = {path for table in plan.rows for path in plan.scores(table)}
    assert {f"{run.path}/{dataset}.scores.json" for run, dataset in jobs.predictions} == scores
    assert ("blip2-opt-2.7b", "flickr30k") in jobs.states
    assert ("blip2-opt-2.7b", "coco", "gg-safe") in jobs.trunks


def test_generated_datasets_have_the_sizes_of_their_settings(repository, tmp_path):
    plan = read_plan(repository / "config", *arguments(repository, tmp_path, "test"))
    sizes = read_sizes(repository / "config")
    found = {name: dataset_size(plan, name, sizes) for name in plan.datasets}
    assert found["scenes-test"].train.texts == 600 and found["scenes-test"].test.samples == 24
    assert found["scenes-test-vqa"].train.texts == 60 * 3
    assert found["scenes-test-pope"].test.samples == 12 * 2 * 6
    assert found["scenes-test-instruct"].train.images == 40


def test_a_local_folder_is_read_for_its_size(repository, tmp_path):
    given = [f"data_root={make_photographs(tmp_path / 'photographs')}"]
    plan = read_plan(repository / "config", *arguments(repository, tmp_path, "local", given))
    size = dataset_size(plan, "local", read_sizes(repository / "config"))
    assert (size.train.images, size.train.texts) == (52, 5 * 52)
    assert (size.test.images, size.test.samples) == (10, 10)


def test_every_real_dataset_has_a_size(repository):
    known = set(read_sizes(repository / "config").datasets)
    for path in (repository / "config" / "datasets").glob("*.yaml"):
        assert path.stem in known or path.stem.startswith("scenes") or path.stem == "local"


def test_estimates_by_hand(repository):
    facts = backbone_facts("mini-blip2-test", repository / "config")
    layer = facts.layer_parameters[0]
    batch = Batch(10, 6)  # with 4 query tokens each: 100 tokens
    assert forward_flops(facts, batch, range(1, 3)) == 2 * 2 * layer * 100
    assert forward_flops(facts, batch, range(1, 3), passes=2) == 4 * 2 * layer * 100
    # Ten texts of two images: 60 tokens of texts, and two prefixes of 4.
    assert packed_flops(facts, Batch(10, 6, images=2), range(1, 3)) == 2 * 2 * layer * 68
    assert packed_flops(facts, batch, range(1, 3)) == 2 * 2 * layer * 100
    assert output_flops(facts, 7) == 2 * 7 * 32 * facts.vocabulary
    assert tail_parameters(facts, 3) == facts.language_parameters - 3 * layer
    weights = facts.parameters * 4
    work = max(100 * (4 * 32 + 3 * 128), 10 * 16 * (6 * 32 + 2 * 128)) * 4
    assert states_bytes(facts, batch) == weights + 3 * 100 * 32 * 4 + work
    cache = 2 * 20 * (2 * 3 * (10 + 5) * 32 * 4)
    logits = 2 * 20 * facts.vocabulary * (4 + 12)
    decoding = 40 * 10 * (4 * 32 + 3 * 128) * 4
    assert predict_bytes(facts, Batch(20, 6), 2, 5) == weights + cache + logits + decoding
    assert step_seconds(facts, 1, 1e15, 1e15) == 0.03
    assert step_seconds(facts, 1, 1e15, 1e3) == facts.language_parameters * 4 / 1e3


def test_gpu_hours_by_hand(diagnose):
    found = diagnose("paper")
    seconds = {(one.stage, one.backbone): one.seconds for one in found.work}
    facts = backbone_facts("blip2-opt-2.7b", found.plan.folder)
    # Features: the test images of five datasets, 256 patches each, at 160 TFLOP/s. Each of the
    # five jobs loads the weights at 1 GB/s.
    images, jobs = 5000 + 1000 + 40504 + 5033 + 500, 5
    operations = 2 * facts.vision_parameters * 256 * images
    expected = operations / 160e12 + jobs * facts.weights_bytes / 1e9
    assert seconds["features", "blip2-opt-2.7b"] == pytest.approx(expected)
    hours = {key: round(value / 3600, 2) for key, value in seconds.items()}
    assert hours["states", "blip2-opt-2.7b"] == 0.01 and hours["trunk", "gemma3-4b"] == 1.11
    assert hours["train", "blip2-opt-2.7b"] == 52.57 and hours["predict", "gemma3-4b"] == 0.98
    assert sum(seconds.values()) / 3600 == pytest.approx(121.02, abs=0.005)


def test_jobs_on_a_dataset_of_unknown_size_are_left_out(diagnose, monkeypatch):
    whole = diagnose("test")
    unknown = "scenes-test-vqa"
    monkeypatch.setattr(
        doctor,
        "dataset_size",
        lambda plan, name, known: None if name == unknown else dataset_size(plan, name, known),
    )
    found = diagnose("test")
    assert any(unknown in note for note in found.notes)
    lost = sum(run.dataset == unknown for run in found.jobs.trained)
    counts = [sum(one.jobs for one in it.work if one.stage == "train") for it in (whole, found)]
    assert lost > 0 and counts == [len(found.jobs.trained), len(found.jobs.trained) - lost]


def test_training_needs_the_whole_model_or_its_gradient(repository):
    facts = backbone_facts("blip2-opt-2.7b", repository / "config")
    top = range(26, 32)
    assert train_bytes(facts, Batch(1, 13), top, 1, 12) == facts.weights_bytes
    more = [train_bytes(facts, Batch(size, 13), top, 1, 12) for size in (1024, 2048)]
    assert facts.weights_bytes < more[0] < more[1] < 2 * more[0]


def test_mappings_are_merged_and_lists_replaced(repository, tmp_path):
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]}) == {
        "a": {"b": 1, "c": 3},
        "d": [2],
    }
    file, given = arguments(repository, tmp_path, "test", ["training={batch_size: 4}"])
    plan = read_plan(repository / "config", file, given)
    assert plan.config.training.batch_size == 4
    assert plan.config.training.max_caption_tokens == 40


def test_the_command_exits_with_1_only_if_asked(repository, tmp_path):
    def run(name: str, *options: str):
        file, given = arguments(repository, tmp_path, name)
        overrides = [part for text in given for part in ("--config", text)]
        folder = ["--config-folder", str(repository / "config")]
        command = ["doctor", "--configfile", str(file), *folder, *overrides, *options]
        return CliRunner().invoke(app, command)

    done = run("paper", "--tflops", "80")
    assert done.exit_code == 0, done.output
    for words in ("blip2-opt-2.7b, coco, naive", "56.4 GB", "80 TFLOP/s", "Missing, 3:"):
        assert words in done.output
    assert run("paper", "--strict").exit_code == 1
    done = run("test", "--strict")
    assert done.exit_code == 0 and "Nothing is missing." in done.output

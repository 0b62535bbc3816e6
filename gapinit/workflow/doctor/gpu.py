"""Memory and time of the GPU jobs of a plan, with the formulas of `costs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from gapinit.config.runs import Run
from gapinit.workflow.doctor import costs
from gapinit.workflow.doctor.costs import Batch
from gapinit.workflow.doctor.jobs import Case, Jobs

STATES_BATCH = 64
FEATURES_BATCH = 64
TRUNK_IMAGES = 16
CAPTION_TOKENS = 12
TFLOPS = 160.0
"""ASSUME: in practice an H100 or H200 reaches 40 % of its 400 TFLOP/s in dense bfloat16."""
FLOAT32_SHARE = 1 / 8
"""ASSUME: share of this rate that float32 weights reach without TF32."""
BANDWIDTH = 2e12
"""ASSUME: bytes of weights per second that decoding reads."""
LOADING = 1e9
"""ASSUME: bytes of weights per second when a job loads them; every job loads its backbone."""


@dataclass(frozen=True)
class Work:
    """The jobs of one stage and backbone."""

    stage: str
    backbone: str
    jobs: int
    seconds: float
    memory: int
    """Of the job that needs the most."""


@dataclass(frozen=True)
class Estimate:
    """One job: its arithmetic and memory, and its decoding steps."""

    operations: float
    memory: int
    steps: int = 0
    sequences: int = 0
    """Sequences of a decoding step."""

    def seconds(self, case: Case, tflops: float) -> float:
        """Return the seconds of the job; `tflops`: the rate in bfloat16."""
        facts = case.facts
        rate = tflops * 1e12 * (FLOAT32_SHARE if facts.dtype == "float32" else 1.0)
        step = costs.step_seconds(facts, self.sequences, rate, BANDWIDTH)
        return self.operations / rate + self.steps * step + facts.weights_bytes / LOADING


Asked = tuple[str, str, str, Callable[[Case], Estimate]]
"""Stage, backbone, dataset, and the function that estimates a job."""


def gpu_work(jobs: Jobs, case_of: Callable[[str, str], Case | None], tflops: float) -> list[Work]:
    """Return the work of each stage and backbone, in the order of the stages.

    Jobs whose backbone or dataset has an unknown size are left out.
    """
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for stage, backbone, dataset, estimate in _asked(jobs):
        case = case_of(backbone, dataset)
        split = "test" if stage in ("features", "predict") else "train"
        if case is None or case.size is None:
            continue
        if stage != "states" and getattr(case.size, split) is None:
            continue
        job = estimate(case)
        pair = (job.seconds(case, tflops), job.memory)
        found.setdefault((stage, backbone), []).append(pair)
    work = []
    for (stage, backbone), each in found.items():
        seconds, memory = zip(*each, strict=True)
        work.append(Work(stage, backbone, len(each), sum(seconds), max(memory)))
    return work


def _asked(jobs: Jobs) -> Iterable[Asked]:
    for backbone, dataset in jobs.states:
        yield "states", backbone, dataset, _states
    for backbone, dataset, layers in jobs.trunks:
        yield "trunk", backbone, dataset, partial(_trunk, layers=layers)
    for run in jobs.trained:
        yield "train", run.backbone, run.dataset, partial(_train, run=run)
    for backbone, dataset in jobs.features:
        yield "features", backbone, dataset, _features
    for run, dataset in jobs.predictions:
        yield "predict", run.backbone, dataset, _predict


def _states(case: Case) -> Estimate:
    facts, pairs = case.facts, case.plan.config.calibration.pairs()
    text = facts.template.prompt + CAPTION_TOKENS
    batch = Batch(pairs, text, size=case.image)
    work = costs.forward_flops(facts, batch, range(facts.num_layers))
    work += pairs * costs.vision_flops(facts, case.image)
    step = Batch(min(STATES_BATCH, pairs), text, size=case.image)
    return Estimate(work, costs.states_bytes(facts, step))


def _trunk(case: Case, layers: str) -> Estimate:
    facts, train = case.facts, case.train
    first = min(case.adapted_layers(layers))
    batch = Batch(train.texts, case.text_tokens, train.images, case.image)
    work = costs.packed_flops(facts, batch, range(first))
    work += train.images * costs.vision_flops(facts, case.image)
    texts = round(TRUNK_IMAGES * train.texts / max(1, train.images))
    step = Batch(texts, case.text_tokens, TRUNK_IMAGES, case.image)
    return Estimate(work, facts.weights_bytes + costs.forward_bytes(facts, step))


def _train(case: Case, run: Run) -> Estimate:
    assert run.layers is not None and run.rank is not None
    facts, config, learned = case.facts, case.plan.config, case.train.learned
    recipe = config.training_of(case.backbone)
    layers = case.adapted_layers(run.layers)
    seen = case.train.texts * (run.epochs or recipe.epochs)
    batch = Batch(seen, case.text_tokens, size=case.image)
    work = costs.forward_flops(facts, batch, range(min(layers), facts.num_layers), passes=2)
    work += costs.output_flops(facts, seen * learned, passes=2)
    step = Batch(recipe.batch_size, case.text_tokens, size=case.image)
    dropout = config.lora.dropout > 0
    return Estimate(work, costs.train_bytes(facts, step, layers, run.rank, learned, dropout))


def _features(case: Case) -> Estimate:
    facts, images = case.facts, case.test.images
    batch = Batch(0, 0, min(FEATURES_BATCH, images), case.image)
    memory = facts.weights_bytes + costs.forward_bytes(facts, batch)
    return Estimate(images * costs.vision_flops(facts, case.image), memory)


def _predict(case: Case) -> Estimate:
    facts, all_samples = case.facts, case.test.samples
    decoding = case.plan.config.decoding_of(case.backbone)
    new = case.plan.max_new_tokens(case.dataset, case.backbone)
    text, beams = facts.template.prompt + case.test.tokens, decoding.num_beams
    whole = Batch(all_samples * beams, text, size=case.image)
    work = costs.forward_flops(facts, whole, range(facts.num_layers))
    samples = min(decoding.batch_size, all_samples)
    memory = costs.predict_bytes(facts, Batch(samples, text, size=case.image), beams, new)
    # ASSUME: every batch decodes until the maximum length.
    steps = -(-all_samples // max(1, samples)) * new
    return Estimate(work, memory, steps, samples * beams)

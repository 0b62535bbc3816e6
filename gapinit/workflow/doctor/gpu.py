"""Memory and time of a plan's GPU jobs, by the estimates of `gapinit.workflow.doctor.costs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gapinit.config.runs import Run
from gapinit.workflow.doctor.disk import adapted_layers, first_layer, text_tokens
from gapinit.workflow.plan import Plan

if TYPE_CHECKING:
    from gapinit.backbones.facts import Facts
    from gapinit.workflow.doctor.costs import Batch
    from gapinit.workflow.doctor.jobs import Jobs
    from gapinit.workflow.doctor.sizes import Size

STATES_BATCH = 64
FEATURES_BATCH = 64
TRUNK_IMAGES = 16
CAPTION_TOKENS = 12
TFLOPS = 160.0
"""ASSUME: 40 % of an H100's or H200's 400 TFLOP/s in dense bfloat16 that is reached in practice."""
FLOAT32_SHARE = 1 / 8
"""ASSUME: what float32 weights reach of that, without TF32."""
BANDWIDTH = 2e12
"""ASSUME: bytes a second that decoding reads weights with."""
Estimator = Callable[..., tuple[float, float, int] | None]
"""Operations, seconds beside them, and bytes of memory of a job; None: it cannot be told."""
LOADING = 1e9
"""ASSUME: bytes a second that a job loads weights with; every job loads its backbone."""


@dataclass(frozen=True)
class Work:
    """The jobs of one stage and backbone."""

    stage: str
    backbone: str
    jobs: int
    seconds: float
    memory: int
    """Of the job that needs most."""


class Estimate:
    """Estimates the GPU jobs of a plan whose backbones and datasets have known sizes."""

    def __init__(
        self,
        plan: Plan,
        jobs: Jobs,
        facts: Mapping[str, Facts],
        sizes: Mapping[str, Size],
        tflops: float = TFLOPS,
    ) -> None:
        self._plan, self._jobs, self._facts, self._sizes = plan, jobs, facts, sizes
        self._flops = tflops * 1e12
        self._found: dict[tuple[str, str], list[tuple[float, int]]] = {}

    def work(self) -> list[Work]:
        """Return each stage and backbone, in the order in which stages run."""
        self._found = {}
        for backbone, dataset in self._jobs.states:
            self._add("states", backbone, dataset, self._states)
        for backbone, dataset, layers in self._jobs.trunks:
            self._add("trunk", backbone, dataset, self._trunk, layers)
        for run in self._jobs.trained:
            self._add("train", run.backbone, run.dataset, self._train, run)
        for backbone, dataset in self._jobs.features:
            self._add("features", backbone, dataset, self._features)
        for run, dataset in self._jobs.predictions:
            self._add("predict", run.backbone, dataset, self._predict)
        return [
            Work(
                stage,
                backbone,
                len(found),
                sum(seconds for seconds, _ in found),
                max(memory for _, memory in found),
            )
            for (stage, backbone), found in self._found.items()
        ]

    def seconds_of(self, stage: str, backbone: str) -> list[float]:
        """Return the seconds of each job of a stage and backbone, in the order of the plan."""
        if not self._found:
            self.work()
        return [seconds for seconds, _ in self._found.get((stage, backbone), [])]

    def _add(
        self, stage: str, backbone: str, dataset: str, estimate: Estimator, *given: object
    ) -> None:
        facts, size = self._facts.get(backbone), self._sizes.get(dataset)
        if facts is None or size is None:
            return
        found = estimate(facts, size, backbone, dataset, *given)
        if found is None:
            return
        operations, extra, memory = found
        rate = self._flops * (FLOAT32_SHARE if facts.dtype == "float32" else 1.0)
        seconds = operations / rate + extra + facts.weights_bytes / LOADING
        self._found.setdefault((stage, backbone), []).append((seconds, memory))

    def _states(
        self, facts: Facts, size: Size, backbone: str, dataset: str
    ) -> tuple[float, float, int]:
        from gapinit.workflow.doctor.costs import Batch, forward_flops, states_bytes, vision_flops

        pairs = self._plan.config.calibration.pairs()
        text = facts.template.prompt + CAPTION_TOKENS
        batch = Batch(pairs, text, size=size.image)
        work = forward_flops(facts, batch, range(facts.num_layers))
        work += pairs * vision_flops(facts, size.image)
        step = Batch(min(STATES_BATCH, pairs), text, size=size.image)
        return work, 0.0, states_bytes(facts, step)

    def _trunk(
        self, facts: Facts, size: Size, backbone: str, dataset: str, layers: str
    ) -> tuple[float, float, int] | None:
        from gapinit.workflow.doctor.costs import Batch, packed_flops, trunk_bytes, vision_flops

        if size.train is None:
            return None
        first = first_layer(self._plan, facts, backbone, layers)
        text = text_tokens(self._plan, facts, backbone, dataset, size)
        batch = Batch(size.train.texts, text, size.train.images, size.image)
        work = packed_flops(facts, batch, range(first))
        work += size.train.images * vision_flops(facts, size.image)
        texts = round(TRUNK_IMAGES * size.train.texts / max(1, size.train.images))
        step = Batch(texts, text, TRUNK_IMAGES, size.image)
        return work, 0.0, trunk_bytes(facts, step)

    def _train(
        self, facts: Facts, size: Size, backbone: str, dataset: str, run: Run
    ) -> tuple[float, float, int] | None:
        from gapinit.workflow.doctor.costs import Batch, forward_flops, output_flops, train_bytes

        if size.train is None or run.layers is None or run.rank is None:
            return None
        recipe = self._plan.training_of(backbone)
        layers = adapted_layers(self._plan, facts, backbone, run.layers)
        text = text_tokens(self._plan, facts, backbone, dataset, size)
        seen = size.train.texts * (run.epochs or recipe.epochs)
        batch = Batch(seen, text, size=size.image)
        work = forward_flops(facts, batch, range(min(layers), facts.num_layers), passes=2)
        work += output_flops(facts, seen * size.train.learned, passes=2)
        step = Batch(recipe.batch_size, text, size=size.image)
        learned, dropout = size.train.learned, self._plan.config.lora.dropout > 0
        return work, 0.0, train_bytes(facts, step, layers, run.rank, learned, dropout)

    def _features(
        self, facts: Facts, size: Size, backbone: str, dataset: str
    ) -> tuple[float, float, int] | None:
        from gapinit.workflow.doctor.costs import Batch, forward_bytes, vision_flops

        if size.test is None:
            return None
        images = min(FEATURES_BATCH, size.test.images)
        memory = facts.weights_bytes + forward_bytes(facts, Batch(0, 0, images, size.image))
        return size.test.images * vision_flops(facts, size.image), 0.0, memory

    def _predict(
        self, facts: Facts, size: Size, backbone: str, dataset: str
    ) -> tuple[float, float, int] | None:
        from gapinit.workflow.doctor.costs import Batch, forward_flops, predict_bytes, step_seconds

        if size.test is None:
            return None
        decoding = self._plan.decoding_of(backbone)
        new = self._plan.max_new_tokens(dataset, backbone)
        text = facts.template.prompt + size.test.tokens
        samples = min(decoding.batch_size, size.test.samples)
        all_beams = Batch(size.test.samples * decoding.num_beams, text, size=size.image)
        work = forward_flops(facts, all_beams, range(facts.num_layers))
        rate = self._flops * (FLOAT32_SHARE if facts.dtype == "float32" else 1.0)
        step = step_seconds(facts, samples * decoding.num_beams, rate, BANDWIDTH)
        batches = -(-size.test.samples // max(1, samples))
        # ASSUME: every batch decodes to the longest answer that is allowed.
        memory = predict_bytes(facts, _sized(samples, text, size), decoding.num_beams, new)
        return work, batches * new * step, memory


def _sized(sequences: int, text: float, size: Size) -> Batch:
    from gapinit.workflow.doctor.costs import Batch

    return Batch(sequences, text, size=size.image)

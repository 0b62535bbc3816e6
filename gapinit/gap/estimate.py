"""`gapinit.estimate_gap`: the modality gap of a Hugging Face model that is in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gapinit.backbones.hooks import output_of
from gapinit.backbones.in_memory import (
    base_of,
    check_layers,
    decoder_linears,
    frozen_base,
    wrap_model,
)
from gapinit.backbones.weights_fingerprint import model_fingerprint
from gapinit.data.check import size_problem
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.gap.gap_vectors import GapVectors, ModuleGap
from gapinit.gap.geometry import Spectrum, spectrum
from gapinit.gap.neighbours import FloatArray
from gapinit.gap.options import check_choice, check_count
from gapinit.gap.spot import DEFAULT_NEIGHBOURS, spot_gap
from gapinit.gap.vector import mean_gap, weighted_gap
from gapinit.progress import track
from gapinit.states.pooling import Pooling, caption_positions, pool
from gapinit.states.states import pooled_sides

if TYPE_CHECKING:
    from PIL.Image import Image

    from gapinit.backbones.base import Backbone
    from gapinit.backbones.inputs import Inputs

    Pair: TypeAlias = tuple[Image | str | os.PathLike[str], str]

LONGEST_CAPTION = 512
"""Tokens, where a model has no fixed number of positions."""
SIDES = ("vision", "text")


def estimate_gap(
    model: Any,
    processor: Any,
    pairs: Iterable[Pair],
    *,
    layers: Sequence[int] | None = None,
    neighbours: int | None = None,
    pooling: Pooling = "mean",
    batch_size: int = 8,
    progress: bool = True,
) -> GapVectors:
    """Measure the modality gap of a model's decoder layers on N (image, caption) pairs.

    One forward pass over each pair, image first. With h_v the mean of a layer's output over the
    image positions and h_t over the caption positions (no BOS, no padding), before the final norm:

        g = mean over pairs of (h_t - h_v)

    or, with `neighbours` = k, the mean of its SPOT smoothing over the k nearest pairs. The same
    passes give the gap at each linear module's own output (always the plain mean).

    `model`: a Hugging Face model of a supported class, or a PeftModel around one, whose adapters
    are switched off meanwhile; any dtype and device. It is left as it was: weights, modes,
    `requires_grad`, hooks. `pairs`: images are PIL images or paths; a generator will do, and
    images are held one batch at a time. `layers`: which decoder layers to keep, from 0; None: all.
    `pooling`: "mean", or "last" for the last position of each side.

    Memory: 8 N d bytes for each layer, in main memory. `GapinitError` for fewer than two pairs; an
    empty caption or unreadable image (its index is named); a state that is not finite (pair and
    layer are named); a model of another class.

    Source: Zhao et al., "When Is Rank-1 Enough?", section 4.2, Appendices C and G.4.
    """
    backbone = wrap_model(model, processor)
    kept = range(backbone.num_layers) if layers is None else sorted(set(layers))
    check_layers(backbone, kept)
    check_choice("pooling", pooling, Pooling)
    check_count("batch_size", batch_size)
    if neighbours is not None:
        check_count("neighbours", neighbours)
    if processor is None:
        raise GapinitError("processor: expected the model's processor, found None")
    batches = _batches(pairs, batch_size)
    if progress:
        total = -(-len(pairs) // batch_size) if isinstance(pairs, Sized) else None
        batches = track(batches, "gap", total)
    measured = _Measurement(backbone, kept, pooling)
    with frozen_base(backbone.model):
        fingerprint = model_fingerprint(backbone.model)
        for batch in batches:
            measured.add(batch)
    if measured.pairs < 2:
        raise GapinitError(f"pairs: expected at least 2, found {measured.pairs}")
    return GapVectors(
        layers=tuple(kept),
        **measure_layers(measured.sides(), neighbours),
        modules=measured.module_gaps(),
        num_layers=backbone.num_layers,
        pairs=measured.pairs,
        pooling=pooling,
        neighbours=neighbours,
        model_type=backbone.model.config.model_type,
        fingerprint=fingerprint,
    )


class _Measurement:
    """Pooled states of every pair and layer, and summed gaps of every linear module."""

    def __init__(self, backbone: Backbone, layers: Sequence[int], pooling: Pooling) -> None:
        self.pairs = 0
        self._backbone = backbone
        self._layers = list(layers)
        self._pooling = pooling
        self._linears = {
            name: linear
            for name, linear in decoder_linears(backbone).items()
            # A model that reads images by cross-attention has no vision at its modules' outputs.
            if linear.layer in layers and not backbone.cross_attends
        }
        self._states: list[Tensor] = []
        """Of each batch, (layers, n, 2, d): vision and text."""
        self._sums: dict[str, Tensor] = {}

    def add(self, batch: Sequence[tuple[Image, str]]) -> None:
        """Run the decoder on some pairs; keep their states and their modules' gaps."""
        backbone = self._backbone
        captions = [caption for _, caption in batch]
        # ASSUME: a caption that is longer than the model's positions is cut.
        encoded = backbone.encode_captions(captions, backbone.text_positions or LONGEST_CAPTION)
        for row, (_, labels) in enumerate(encoded):
            if sum(label != -100 for label in labels) < 2:  # its tokens, and EOS
                raise GapinitError(f"pairs[{self.pairs + row}]: the caption has no token")
        images = backbone.look([image for image, _ in batch])
        inputs = backbone.embed(images, [ids for ids, _ in encoded])
        text = caption_positions(inputs, [labels for _, labels in encoded])
        with ExitStack() as hooks:
            for name, linear in self._linears.items():
                add = partial(self._add_module, name, inputs, text)
                hooks.enter_context(output_of(base_of(linear.module), add))
            states = pooled_sides(backbone, inputs, self._pooling, text)[self._layers].cpu()
        bad = (~torch.isfinite(states)).any(dim=-1).nonzero()
        if len(bad):
            layer, row, side = bad[0].tolist()
            raise GapinitError(
                f"pairs[{self.pairs + row}]: the {SIDES[side]} state of decoder layer "
                f"{self._layers[layer]} is not finite. Leave that pair out, or load the model in a "
                "wider dtype."
            )
        self._states.append(states)
        self.pairs += len(batch)

    def _add_module(self, name: str, inputs: Inputs, text: Tensor, output: Tensor) -> None:
        # OPT folds pairs and positions into one axis for its MLP.
        states = output.reshape(*text.shape, output.shape[-1])
        seen, where = self._backbone.vision_states(inputs, states)
        gaps = pool(states, text, self._pooling) - pool(seen, where, self._pooling)
        total = gaps.sum(dim=0)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def sides(self) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield each layer's text and vision states, (N, d)."""
        for layer in range(len(self._layers)):
            states = torch.cat([block[layer] for block in self._states]).numpy()
            yield states[:, 1], states[:, 0]

    def module_gaps(self) -> dict[str, ModuleGap]:
        """Return the gap at the output of each linear module that the forward pass has called."""
        return {
            name: ModuleGap(linear.layer, (self._sums[name] / self.pairs).cpu())
            for name, linear in self._linears.items()
            if name in self._sums
        }


def measure_layers(
    sides: Iterable[tuple[FloatArray, FloatArray]], neighbours: int | None
) -> dict[str, Any]:
    """Return the gaps, SPOT-Gap scores and spectra of layers, by their names in `GapVectors`.

    `sides`: the text and the vision states of each layer, (N, d).
    """
    vectors, scores, spectra = [], [], []
    for text, vision in sides:
        # ASSUME: without smoothing, scores still need a neighbourhood: that of `gapinit.spot_gap`.
        near = neighbours or min(DEFAULT_NEIGHBOURS, len(text) - 1)
        spot = spot_gap(text, vision, neighbours=near)
        plain = neighbours is None
        gap = mean_gap(text, vision) if plain else weighted_gap(text, vision, spot.weights)
        vectors.append(torch.from_numpy(gap))
        scores.append(spot.score)
        spectra.append(spectrum(text.astype(np.float64) - vision))
    return {
        "vectors": torch.stack(vectors),
        "spot_scores": torch.tensor(scores, dtype=torch.float64),
        "spectrum": Spectrum(*(np.stack(parts) for parts in zip(*spectra, strict=True))),
    }


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[tuple[Image, str]]]:
    """Read pairs and their images, some at a time."""
    checked = (_read_pair(pair, f"pairs[{index}]") for index, pair in enumerate(pairs))
    while batch := list(islice(checked, size)):
        yield batch


def _read_pair(pair: Any, origin: str) -> tuple[Image, str]:
    """Return a pair's image in RGB and its caption; error messages start with `origin`."""
    from PIL.Image import Image

    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise GapinitError(f"{origin}: expected (image, caption), found {type(pair).__name__}")
    image, caption = pair
    if not isinstance(caption, str) or not caption.strip():
        raise GapinitError(f"{origin}: expected a caption, found {caption!r}")
    if not isinstance(image, Image | str | os.PathLike):
        raise GapinitError(
            f"{origin}: expected a PIL image or a path, found {type(image).__name__}"
        )
    try:
        read = image.convert("RGB") if isinstance(image, Image) else load_image(Path(image))
    except (GapinitError, OSError, SyntaxError, ValueError) as error:
        raise GapinitError(f"{origin}: unreadable image ({error})") from None
    # As in `gapinit data check`: some image processors fail on such sizes without a clear message.
    problem = size_problem(read.size, max_pixels=None)
    if problem is not None:
        raise GapinitError(f"{origin}: {problem}")
    return read, caption

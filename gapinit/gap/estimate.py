"""`gapinit.estimate_gap`: the modality gap of a Hugging Face model that is in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from gapinit.backbones.in_memory import base_of, decoder_linears, frozen_base, wrap_model
from gapinit.backbones.weights_fingerprint import model_fingerprint
from gapinit.data.check import size_problem
from gapinit.data.images import load_image
from gapinit.errors import GapinitError
from gapinit.gap.gap_vectors import GapVectors, ModuleGap
from gapinit.gap.geometry import Spectrum, spectrum
from gapinit.gap.neighbours import FloatArray
from gapinit.gap.spot import DEFAULT_NEIGHBOURS, spot_gap
from gapinit.gap.vector import mean_gap, weighted_gap
from gapinit.progress import track
from gapinit.states.pooling import Pooling, caption_positions, pool

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
    kept = _check_layers(layers, backbone.num_layers)
    _check_options(pooling, batch_size, neighbours)
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
        self._layers = layers
        self._pooling = pooling
        self._linears = {
            name: linear
            for name, linear in decoder_linears(backbone).items()
            # A model that reads images by cross-attention has no vision at its modules' outputs.
            if linear.layer in layers and not backbone.cross_attends
        }
        self._states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        self._sums: dict[str, Tensor] = {}

    def add(self, batch: Sequence[tuple[Image, str]]) -> None:
        """Run the decoder on some pairs and keep what it shows of them."""
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
            for layer in self._layers:
                module = backbone.decoder_layers[layer]
                keep = self._keep_states(layer, inputs, text)
                hooks.enter_context(output_of(module, keep))
            for name, linear in self._linears.items():
                hook = self._add_module(name, inputs, text)
                hooks.enter_context(output_of(base_of(linear.module), hook))
            backbone.decode(inputs)
        self._require_finite()
        self.pairs += len(batch)

    def _keep_states(self, layer: int, inputs: Inputs, text: Tensor) -> Callable[[Tensor], None]:
        def keep(output: Tensor) -> None:
            sides = self._sides(output, inputs, text)
            self._states[layer].append(torch.stack(sides, dim=1).float().cpu())

        return keep

    def _add_module(self, name: str, inputs: Inputs, text: Tensor) -> Callable[[Tensor], None]:
        rows, positions = text.shape

        def add(output: Tensor) -> None:
            # OPT folds pairs and positions into one axis for its MLP.
            states = output.reshape(rows, positions, output.shape[-1])
            vision_side, text_side = self._sides(states, inputs, text)
            total = (text_side - vision_side).sum(dim=0)
            self._sums[name] = self._sums[name] + total if name in self._sums else total

        return add

    def _sides(self, states: Tensor, inputs: Inputs, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled vision and text sides of a layer's or a module's output, (n, width)."""
        seen, where = self._backbone.vision_states(inputs, states)
        return pool(seen, where, self._pooling), pool(states, text, self._pooling)

    def _require_finite(self) -> None:
        for layer, blocks in self._states.items():
            bad = (~torch.isfinite(blocks[-1])).any(dim=-1).nonzero()
            if len(bad):
                row, side = bad[0].tolist()
                raise GapinitError(
                    f"pairs[{self.pairs + row}]: the {SIDES[side]} state of decoder layer {layer} "
                    "is not finite. Leave that pair out, or load the model in a wider dtype."
                )

    def sides(self) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield each layer's text and vision states, (N, d)."""
        for layer in self._layers:
            states = torch.cat(self._states[layer]).numpy()
            yield states[:, 1], states[:, 0]

    def module_gaps(self) -> dict[str, ModuleGap]:
        """Return the gap at each linear module's own output."""
        return {
            name: ModuleGap(linear.layer, (self._sums[name] / self.pairs).cpu())
            for name, linear in self._linears.items()
            if name in self._sums  # every one that the forward pass has called
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


@contextmanager
def output_of(module: torch.nn.Module, use: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `use` with the module's output during the block."""

    def hook(_module: torch.nn.Module, _arguments: object, output: Any) -> None:
        use(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[tuple[Image, str]]]:
    """Read pairs and their images, some at a time."""
    checked = (_read_pair(pair, index) for index, pair in enumerate(pairs))
    while batch := list(islice(checked, size)):
        yield batch


def _read_pair(pair: Any, index: int) -> tuple[Image, str]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise GapinitError(
            f"pairs[{index}]: expected (image, caption), found {type(pair).__name__}"
        )
    image, caption = pair
    if not isinstance(caption, str):
        raise GapinitError(
            f"pairs[{index}]: expected a caption as second, found {type(caption).__name__}"
        )
    if not caption.strip():
        raise GapinitError(f"pairs[{index}]: the caption is empty")
    read = _read_image(image, index)
    # What data preparation refuses: some image processors raise errors of their own there.
    problem = size_problem(read.size, max_pixels=None)
    if problem is not None:
        raise GapinitError(f"pairs[{index}]: {problem}")
    return read, caption


def _read_image(image: Any, index: int) -> Image:
    from PIL.Image import Image

    if isinstance(image, Image):
        try:
            return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise GapinitError(f"pairs[{index}]: unreadable image ({error})") from None
    if not isinstance(image, str | os.PathLike):
        raise GapinitError(
            f"pairs[{index}]: expected a PIL image or a path, found {type(image).__name__}"
        )
    try:
        return load_image(Path(image))
    except GapinitError as error:
        raise GapinitError(f"pairs[{index}]: {error}") from None


def _check_layers(layers: Sequence[int] | None, available: int) -> list[int]:
    layers = list(range(available)) if layers is None else list(layers)
    whole = [isinstance(layer, int) and not isinstance(layer, bool) for layer in layers]
    if not layers or not all(whole) or not all(0 <= layer < available for layer in layers):
        raise GapinitError(
            f"layers: expected decoder layers from 0 to {available - 1}, found {layers}"
        )
    return sorted(set(layers))


def _check_options(pooling: str, batch_size: int, neighbours: int | None) -> None:
    if pooling not in get_args(Pooling):
        raise GapinitError(
            f"pooling: expected one of {', '.join(get_args(Pooling))}, found {pooling!r}"
        )
    for name, value in (("batch_size", batch_size), ("neighbours", neighbours)):
        if name == "neighbours" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GapinitError(f"{name}: expected a whole number of at least 1, found {value!r}")

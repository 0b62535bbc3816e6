"""BLIP-2 with an OPT language model: where its image, caption and decoder positions are.

A sequence is the image's query tokens, then BOS, then the caption (the order of the model's own
processor). Nothing outside `gapinit.backbones` knows a module's name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor
from transformers.utils import logging as transformers_logging

from gapinit.artifacts import read_json
from gapinit.backbones.prompts import PROMPTS, Segment
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from PIL.Image import Image

# OPT calls the paper's `o_proj` `out_proj`. The pattern is anchored to the language model, so that
# modules of the same name in the vision tower or the Q-Former are never hit.
TARGET_PATTERN = (
    r"language_model\.model\.decoder\.layers\.({layers})\."
    r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|fc1|fc2)"
)


class Blip2Backbone:
    """A BLIP-2 model and its processor, seen through the questions that gapinit asks."""

    model_class = Blip2ForConditionalGeneration
    prompts = PROMPTS["blip2"]

    def __init__(
        self, model: Blip2ForConditionalGeneration, processor: Blip2Processor | None
    ) -> None:
        """Without a processor, for questions about the model alone: it has no tokenizer then."""
        if not model.config.use_decoder_only_language_model:
            raise GapinitError(
                "this BLIP-2 has an encoder-decoder language model (T5); gapinit adapts BLIP-2 "
                "with a decoder-only one (OPT)"
            )
        # Any: the type stubs know submodules and nested configurations as unions only.
        self.model: Any = model
        self.processor: Any = processor
        self.tokenizer: Any = None if processor is None else processor.tokenizer
        text_config: Any = model.config.text_config
        self.num_image_tokens: int = model.config.num_query_tokens
        self.hidden_size: int = text_config.hidden_size
        self.num_layers: int = text_config.num_hidden_layers

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Blip2Backbone:
        """Load weights (safetensors only) and processor from a `save_pretrained` folder.

        Raises GapinitError, before any weight is read, for another kind of language model and for
        a folder without safetensors; and for weights that are damaged or do not fill the model.
        """
        _require_decoder_only(folder)
        try:
            with no_progress_bars():
                loaded: Any = Blip2ForConditionalGeneration.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            model, report = loaded
            processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise GapinitError(f"{folder}: this backbone cannot be loaded ({reason})") from None
        if report["missing_keys"]:
            # Hugging Face would fill them with random numbers and go on.
            raise GapinitError(
                f"{folder}: the weights lack {len(report['missing_keys'])} tensors of this model, "
                f"for example '{min(report['missing_keys'])}'. Make or download the folder again."
            )
        # ASSUME: frozen layers run without dropout, in training too (design, Section 4).
        model.eval().requires_grad_(False).to(device)
        return cls(model, processor)

    @property
    def device(self) -> torch.device:
        """Return the device that the weights are on."""
        return self.model.query_tokens.device

    @property
    def decoder(self) -> Any:
        """Return the language model's stack of decoder layers, embeddings included."""
        return self.model.language_model.model.decoder

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Return the decoder layers, bottom first."""
        return self.decoder.layers

    @property
    def output_head(self) -> nn.Module:
        """Return the matrix from final hidden states to the vocabulary."""
        return self.model.language_model.lm_head

    def target_modules(self, layers: Sequence[int]) -> str:
        """Return PEFT's pattern for the attention and MLP matrices of these decoder layers."""
        return TARGET_PATTERN.format(layers="|".join(str(layer) for layer in layers))

    def named_targets(self, layers: Sequence[int]) -> dict[str, nn.Linear]:
        """Return the matrices that `target_modules` matches, while no adapter is on them."""
        pattern = re.compile(self.target_modules(layers))
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        }

    def pixel_values(self, images: Sequence[Image]) -> Tensor:
        """Return the processor's pixels of RGB images, (n, 3, height, width), float32."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return image tokens in the language model's space, (n, image tokens, hidden size)."""
        pixels = pixel_values.to(self.device, self.model.dtype)
        return self.model.get_image_features(pixels, return_dict=True).pooler_output

    def encode(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return token ids of each caption, BOS first and no EOS, at most `max_tokens` long."""
        self._require_positions(max_tokens, "max_caption_tokens")
        encoded = self.tokenizer(
            list(captions), add_special_tokens=False, truncation=True, max_length=max_tokens - 1
        )
        bos = self.model.config.text_config.bos_token_id
        return [[bos, *ids] for ids in encoded["input_ids"]]

    def encode_segments(
        self, texts: Sequence[Sequence[Segment]], max_tokens: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and labels of texts, each at most `max_tokens` long.

        Ids start with BOS; a label is the next token where that is learned, else -100. Each
        learned segment ends with EOS. Segments are tokenised alone, with a space between them,
        so that a prompt has the same tokens in training and in decoding.
        """
        self._require_positions(max_tokens, "the longest text in training")
        pieces = [
            f" {piece}" if piece and any(before for before, _ in text[:index]) else piece
            for text in texts
            for index, (piece, _) in enumerate(text)
        ]
        ids = iter(self._token_ids(pieces))
        return [
            self._labelled([(next(ids), learned) for _, learned in text], max_tokens)
            for text in texts
        ]

    def _labelled(
        self, segments: Sequence[tuple[list[int], bool]], max_tokens: int
    ) -> tuple[list[int], list[int]]:
        tokens = [self.model.config.text_config.bos_token_id]
        labels = []
        for ids, learned in segments:
            added = [*ids, self.eos_token_id] if learned else ids
            tokens += added
            labels += added if learned else [-100] * len(added)
        if len(labels) > max_tokens and labels[max_tokens - 1] != -100:
            # ASSUME: a text that was cut ends with EOS like any other.
            labels[max_tokens - 1] = self.eos_token_id
        return tokens[: len(labels)][:max_tokens], labels[:max_tokens]

    def encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Return token ids of what decoding starts from, BOS first, none of them cut."""
        bos = self.model.config.text_config.bos_token_id
        encoded = [[bos, *ids] for ids in self._token_ids(prompts)]
        longest = max(len(ids) for ids in encoded)
        self._require_positions(longest - 1 + max_new_tokens, "max_new_tokens")
        return encoded

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        # An empty text is legal in a prompt, and not every tokenizer takes it.
        encoded = iter(
            self.tokenizer([text for text in texts if text], add_special_tokens=False)["input_ids"]
            if any(texts)
            else []
        )
        return [list(next(encoded)) if text else [] for text in texts]

    @property
    def text_positions(self) -> int:
        """Return how many text tokens, BOS included, fit beside the image."""
        positions: int = self.model.config.text_config.max_position_embeddings
        return positions - self.num_image_tokens

    def _require_positions(self, text_tokens: int, option: str) -> None:
        room = self.text_positions
        if text_tokens > room:
            positions = room + self.num_image_tokens
            raise GapinitError(
                f"{option}: {text_tokens} text tokens do not fit: the backbone has {positions} "
                f"positions, {self.num_image_tokens} of them for the image. Use at most {room}."
            )

    @property
    def eos_token_id(self) -> int:
        """Return the token that ends a caption."""
        return self.model.config.text_config.eos_token_id

    @property
    def pad_token_id(self) -> int:
        """Return the token that fills up a batch."""
        return self.model.config.text_config.pad_token_id

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad token ids on the right: (n, longest) ids and lengths (n,), on the model's device."""
        lengths = torch.tensor([len(ids) for ids in sequences])
        ids = torch.full((len(sequences), int(lengths.max())), self.pad_token_id)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        return ids.to(self.device), lengths.to(self.device)

    def embed(self, image_features: Tensor, input_ids: Tensor) -> Tensor:
        """Return decoder inputs: image tokens first, then the text's embeddings."""
        text = self.decoder.embed_tokens(input_ids)
        return torch.cat([image_features.to(text), text], dim=1)

    def decode(self, inputs_embeds: Tensor) -> Tensor:
        """Run the decoder and return its states after the final norm.

        Padding stands on the right and attention is causal, so no valid position ever sees it and
        no mask is needed: positions count from 0 without gaps.
        """
        inputs = inputs_embeds.to(self.model.dtype)  # cached states are float32
        return self.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state

    def cut_below(self, first: int) -> None:
        """Make `decode` start at layer `first`, fed with that layer's input states.

        The lower layers and the learned positions, which OPT adds below the first layer, become
        pass-throughs; module names stay what they were, so adapters keep their full names.
        """
        if self.decoder.project_in is not None:
            raise GapinitError("an OPT with projected embeddings (opt-350m) cannot be cut")
        for layer in range(first):
            self.decoder_layers[layer] = _PassThrough()
        self.decoder.embed_positions = _NoPositions()
        self.drop_vision()

    def keep_below(self, first: int) -> None:
        """Make `decode` stop in front of layer `first` and return the states that enter it."""
        self.decoder.layers = self.decoder_layers[:first]
        self.decoder.final_layer_norm = None
        self.decoder.project_out = None

    def drop_vision(self) -> None:
        """Free the vision tower and the Q-Former: training on cached states never calls them."""
        self.model.vision_model = None
        self.model.qformer = None

    @torch.inference_mode()
    def generate(
        self,
        image_features: Tensor,
        max_new_tokens: int,
        num_beams: int,
        prompts: Sequence[str] | None = None,
    ) -> list[str]:
        """Answer a prompt on each image by greedy (1 beam) or beam search; none: caption it."""
        if prompts is None:
            prompts = [self.prompts.caption] * len(image_features)
        encoded = self.encode_prompts(prompts, max_new_tokens)
        inputs_embeds, attention_mask = self._left_padded(image_features.to(self.device), encoded)
        tokens = self.model.language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )
        return [
            text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ]

    def _left_padded(
        self, image_features: Tensor, prompts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return decoder inputs that all end where decoding starts, and their mask."""
        ids, lengths = self.pad(prompts)
        width = ids.shape[1]
        embedded = self.embed(image_features, ids)
        # A shorter row moves to the right, its padding to the front: before the image.
        shift = width - lengths
        position = torch.arange(embedded.shape[1], device=self.device)[None] - shift[:, None]
        rows = torch.arange(len(ids), device=self.device)[:, None]
        return embedded[rows, position.clamp(min=0)], (position >= 0).long()


class _PassThrough(nn.Module):
    """Stands where a frozen layer was whose output is already cached."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return hidden_states


class _NoPositions(nn.Module):
    """Stands where OPT's learned positions were: cached states already hold them."""

    def forward(self, attention_mask: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros((), device=attention_mask.device)


def _require_decoder_only(folder: Path) -> None:
    config = read_json(Path(folder) / "config.json")
    language_model = (config.get("text_config") or {}).get("model_type", "opt")
    if language_model != "opt":
        raise GapinitError(
            f"{folder}: the language model of this BLIP-2 is '{language_model}', expected 'opt': "
            "gapinit adapts decoder-only BLIP-2 (for example blip2-opt-2.7b)"
        )
    if not any(Path(folder).glob("*.safetensors")):
        raise GapinitError(
            f"{folder}: no *.safetensors here (pickled weights are never loaded). Get the "
            "safetensors files of this model."
        )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence Hugging Face's own bars during the block, unless someone watches a terminal."""
    silence = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if silence:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            transformers_logging.enable_progress_bar()

"""BLIP-2 with an OPT language model: where its image, caption and decoder positions are.

A sequence is the image's query tokens, then BOS, then the caption (the order of the model's own
processor). Nothing outside `gapinit.backbones` knows a module's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor

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

    def __init__(self, model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> None:
        if not model.config.use_decoder_only_language_model:
            raise GapinitError(
                "this BLIP-2 has an encoder-decoder language model (T5); gapinit adapts BLIP-2 "
                "with a decoder-only one (OPT)"
            )
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.num_image_tokens: int = model.config.num_query_tokens
        self.hidden_size: int = model.config.text_config.hidden_size
        self.num_layers: int = model.config.text_config.num_hidden_layers

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Blip2Backbone:
        """Load weights (safetensors only) and processor from a `save_pretrained` folder."""
        model = Blip2ForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
        # ASSUME: frozen layers run without dropout, in training too (design, Section 4).
        model.eval().requires_grad_(False).to(device)
        return cls(model, Blip2Processor.from_pretrained(folder))

    @property
    def device(self) -> torch.device:
        """Return the device that the weights are on."""
        return self.model.query_tokens.device

    @property
    def decoder(self) -> nn.Module:
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

    def pixel_values(self, images: Sequence[Image]) -> Tensor:
        """Return the processor's pixels of RGB images, (n, 3, height, width), float32."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return image tokens in the language model's space, (n, image tokens, hidden size)."""
        pixels = pixel_values.to(self.device, self.model.dtype)
        return self.model.get_image_features(pixels, return_dict=True).pooler_output

    def encode(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return token ids of each caption, BOS first and no EOS, at most `max_tokens` long."""
        encoded = self.tokenizer(
            list(captions), add_special_tokens=False, truncation=True, max_length=max_tokens - 1
        )
        bos = self.model.config.text_config.bos_token_id
        return [[bos, *ids] for ids in encoded["input_ids"]]

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
        return torch.cat([image_features.to(text.dtype), text], dim=1)

    def decode(self, inputs_embeds: Tensor) -> Tensor:
        """Run the decoder and return its states after the final norm.

        Padding stands on the right and attention is causal, so no valid position ever sees it and
        no mask is needed: positions count from 0 without gaps.
        """
        return self.decoder(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state

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
    def generate(self, image_features: Tensor, max_new_tokens: int, num_beams: int) -> list[str]:
        """Caption images from their features by greedy (1 beam) or beam search."""
        bos = self.model.config.text_config.bos_token_id
        start = torch.full((len(image_features), 1), bos, device=self.device)
        inputs_embeds = self.embed(image_features.to(self.device), start)
        tokens = self.model.language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=torch.ones(inputs_embeds.shape[:2], dtype=torch.long),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class _PassThrough(nn.Module):
    """Stands where a frozen layer was whose output is already cached."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return hidden_states


class _NoPositions(nn.Module):
    """Stands where OPT's learned positions were: cached states already hold them."""

    def forward(self, attention_mask: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros((), device=attention_mask.device)


def fingerprint(folder: Path) -> str:
    """Return a digest of a backbone's configuration and weights, to tell models apart.

    Each safetensors file counts with its header, its size and its first and last MiB, so that
    a folder of many gigabytes is told apart in a moment.
    """
    state = hashlib.sha256()
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise GapinitError(f"{folder}: no backbone here (expected config.json and *.safetensors)")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state.update(json.dumps(config, sort_keys=True).encode())
    window = 1 << 20
    for path in weights:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            header = handle.read(8 + int.from_bytes(handle.read(8), "little"))
            state.update(f"{path.name} {size}".encode() + header)
            handle.seek(max(0, size - window))
            state.update(handle.read(window))
    return state.hexdigest()

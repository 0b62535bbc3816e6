"""Qwen2-VL: the number of image tokens depends on the image's size; positions have three parts.

A token's time, row and column rotate its queries and keys (M-RoPE). The positions of text behind an
image continue from the larger of its two sides, not from its number of tokens. Hugging Face
computes them from `input_ids` and `mm_token_type_ids` and, without those, silently uses plain
positions. Here they are computed from the image's grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from gapinit.backbones.base import LLAMA_MODULES, Backbone
from gapinit.backbones.inputs import Images, Inputs
from gapinit.backbones.last_layer import rotary_layer
from gapinit.backbones.prompts import Prompts

ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


class Qwen2VLBackbone(Backbone):
    """Qwen2-VL: a vision tower for any resolution and a Qwen2 decoder."""

    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    # Source: the chat template of the published weights. ASSUME: the papers do not print their
    # prompts; the wording is that of LLaVA's evaluations.
    default_prompts = Prompts(
        head=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>"
        ),
        caption=f"<|vision_end|>Provide a one-sentence caption for the provided image.{ANSWER}",
        question=(
            "<|vision_end|>{question}\nAnswer the question using a single word or phrase." + ANSWER
        ),
        chat="<|vision_end|>{question}" + ANSWER,
        turn="\n<|im_start|>user\n{question}" + ANSWER,
        end="<|im_end|>",
    )
    target_pattern = r"model\.language_model\.layers\.({layers})\." + LLAMA_MODULES
    grid_width = 2
    packs_texts = True
    last_layer = staticmethod(rotary_layer)
    vision_pattern = r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"

    def image_tokens(self, width: int, height: int) -> int:
        """Return an image's number of merged patches."""
        reader = self.processor.image_processor
        patches: int = reader.get_number_of_image_patches(height, width)
        return patches // reader.merge_size**2

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return each image's merged patches, and their numbers of rows and columns."""
        grid = pixels["image_grid_thw"]
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        found = self.model.get_image_features(values, grid.to(self.device), return_dict=True)
        merge = self.model.config.vision_config.spatial_merge_size
        return Images(
            torch.cat(list(found.pooler_output)),
            grid.prod(1).cpu() // merge**2,
            grid[:, 1:] // merge,
        )

    def drop_vision(self) -> None:
        """Free the vision tower."""
        self.model.model.visual = None

    def decoder_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return each token's time, row and column."""
        return {"position_ids": self.positions(inputs)}

    def positions(self, inputs: Inputs) -> Tensor:
        """Return positions in time, rows and columns, (3, n, width).

        In front of an image of r rows and c columns all three count tokens. With s tokens in front,
        the image's token in row i and column j has (s, s + i, s + j), and the text behind it starts
        at s + max(r, c) in all three.
        """
        start, end = (value[:, None] for value in self.image_span(inputs))
        rows, columns = (inputs.grid[:, side, None] for side in (0, 1))
        position = inputs.positions
        within = position - start
        behind = position - end + start + torch.maximum(rows, columns)
        plain = torch.where(position < start, position, behind)
        width = columns.clamp(min=1)  # 0 where there is no image
        seen = (position >= start) & (position < end)
        return torch.stack(
            [
                torch.where(seen, start + offset, plain)
                for offset in (torch.zeros_like(within), within // width, within % width)
            ]
        )

    def generation_arguments(self, inputs: Inputs, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the arguments from which Hugging Face computes the same positions."""
        merge = self.model.config.vision_config.spatial_merge_size
        sides = merge * inputs.grid
        return {
            "input_ids": input_ids,
            "mm_token_type_ids": (input_ids == self.image_token_id).int(),
            "image_grid_thw": torch.cat([torch.ones_like(sides[:, :1]), sides], dim=1),
        }

"""Greedy decoding and beam search from cached image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gapinit.backbones.inputs import Images, Inputs

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone


def generate(
    backbone: Backbone,
    images: Images,
    max_new_tokens: int,
    num_beams: int,
    prompts: Sequence[str] | None = None,
) -> list[str]:
    """Answer one prompt per image by greedy decoding (1 beam) or beam search.

    `prompts`: None asks for captions. Raises GapinitError if prompt and answer do not fit into the
    model's positions.
    """
    tokens = generate_tokens(backbone, images, max_new_tokens, num_beams, prompts)
    tokenizer = backbone.processor.tokenizer
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


@torch.inference_mode()
def generate_tokens(
    backbone: Backbone,
    images: Images,
    max_new_tokens: int,
    num_beams: int,
    prompts: Sequence[str] | None = None,
) -> Tensor:
    """Return the new tokens of each answer of `generate`, (n, at most `max_new_tokens`)."""
    if prompts is None:
        prompts = [backbone.prompts.caption] * len(images)
    encoded = backbone.encode_prompts(prompts, max_new_tokens)
    inputs = backbone.embed(images, encoded)
    states, mask, ids = _left_padded(inputs, _placeholder_ids(backbone, inputs, encoded))
    arguments: dict[str, Any] = backbone.generation_arguments(inputs, ids)
    tokens: Tensor = backbone.generator.generate(
        inputs_embeds=states,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        pad_token_id=backbone.pad_token_id,
        eos_token_id=backbone.stop_token_ids,
        **arguments,
    )
    return tokens[:, ids.shape[1] :] if "input_ids" in arguments else tokens


def _placeholder_ids(backbone: Backbone, inputs: Inputs, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return each sequence's token ids, (n, width), with placeholders for image tokens."""
    ids = torch.full(inputs.states.shape[:2], backbone.pad_token_id)
    for row, text in enumerate(texts):
        seen = int(inputs.prefix_length[row]) - len(backbone.head)
        whole = [*backbone.head, *[backbone.image_token_id] * seen, *text]
        ids[row, : len(whole)] = torch.tensor(whole)
    return ids.to(inputs.states.device)


def _left_padded(inputs: Inputs, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return states and token ids with the padding moved to the left, and their mask."""
    width = inputs.states.shape[1]
    position = torch.arange(width, device=ids.device)[None] - (width - inputs.length)[:, None]
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    # Negative positions take padding from the end of the same row.
    source = torch.where(position >= 0, position, width + position)
    return inputs.states[rows, source], (position >= 0).long(), ids[rows, source]

"""Llama 3.2 Vision: a decoder that reads the image by cross-attention.

The text contains one token for an image; some decoder layers attend to the image's projected
features instead of the text. An image is split into tiles with the same number of features each,
and padded to the largest number of tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import MllamaForConditionalGeneration

from gapinit.backbones.base import Backbone
from gapinit.backbones.inputs import Images, Inputs, added_mask
from gapinit.backbones.last_layer import cross_layer
from gapinit.backbones.prompts import Prompts

ANSWER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
ASK = "<|start_header_id|>user<|end_header_id|>\n\n"


class MllamaBackbone(Backbone):
    """Llama 3.2 Vision: a tiling vision tower and a Llama decoder with cross-attention layers.

    The features of padding tiles are kept: the model masks them for the image's token and the text
    behind it, but not for the template in front, which attends to the image without a mask.
    `grid` holds the number of tiles that are not padding.
    """

    model_class: ClassVar[Any] = MllamaForConditionalGeneration
    # Source: the chat template of the published weights. ASSUME: the papers do not print their
    # prompts; the wording is that of LLaVA's evaluations.
    default_prompts = Prompts(
        head=ASK,
        caption=f"Provide a one-sentence caption for the provided image.{ANSWER}",
        question="{question}\nAnswer the question using a single word or phrase." + ANSWER,
        chat="{question}" + ANSWER,
        turn=ASK + "{question}" + ANSWER,
        end="<|eot_id|>",
    )
    target_pattern = (
        r"model\.language_model\.layers\.({layers})\."
        r"((self_attn|cross_attn)\.(q_proj|k_proj|v_proj|o_proj)"
        r"|mlp\.(gate_proj|up_proj|down_proj))"
    )
    vision_pattern = (
        r"model\.vision_model\.(transformer|global_transformer)\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(fc1|fc2))"
    )
    cross_attends = True
    grid_width = 1
    packs_texts = True
    last_layer = staticmethod(cross_layer)

    @property
    def tile_tokens(self) -> int:
        """Return how many features a tile has: its patches and the class token."""
        vision = self.model.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + 1)

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of features, padding tiles included: the same for every image."""
        return int(self.model.config.vision_config.max_num_tiles) * self.tile_tokens

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return the tiles of RGB images, each passed as a sample with one image."""
        found = self.processor.image_processor([[image] for image in images], return_tensors="pt")
        return {name: value for name, value in found.items() if name != "num_tiles"}

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the projected features of all tiles, and how many tiles are not padding."""
        own = pixels["aspect_ratio_mask"]
        seen = self.model.model.vision_model(
            pixel_values=pixels["pixel_values"].to(self.device, self.model.dtype),
            aspect_ratio_ids=pixels["aspect_ratio_ids"].to(self.device),
            aspect_ratio_mask=own.to(self.device),
        ).last_hidden_state
        tokens = self.model.model.multi_modal_projector(seen).flatten(1, 3)
        return replace(Images.equal(tokens), grid=own.sum(2).cpu())

    def drop_vision(self) -> None:
        """Free the vision tower."""
        self.model.model.vision_model = None

    def stream(self, images: Images) -> Images:
        """Return the image token, once for each image that has features."""
        counts = self.stream_counts(images.counts)
        ids = torch.full((int(counts.sum()),), self.image_token_id, device=self.device)
        return Images(self.embed_ids(ids), counts, images.grid)

    def stream_counts(self, counts: Tensor) -> Tensor:
        """Return one for an image that has features, none for one without."""
        return counts.clamp(max=1)

    def _padded(
        self, images: Images, head: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> Inputs:
        inputs = super()._padded(images, head, texts)
        tokens = images.tokens.to(inputs.states).split(images.counts.tolist())
        memory = pad_sequence(list(tokens), batch_first=True)
        if memory.shape[1] == 0:
            # Without any image the model skips its cross-attention layers. One masked zero feature
            # has the same effect, and each layer still has an output.
            memory = memory.new_zeros(len(memory), 1, memory.shape[2])
        return replace(inputs, memory=memory, memory_length=images.counts.to(self.device))

    def decoder_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return the features, and the masks of which positions read which features."""
        if inputs.memory is None:
            return {}
        dtype = self.model.dtype
        start, _ = self.image_span(inputs)
        behind = inputs.positions >= start[:, None]  # the image's token and the text
        allowed = behind[:, :, None] & self._own(inputs)[:, None]
        reads = allowed.any(dim=2, keepdim=True)
        # Positions that read nothing get no mask: the model lets them attend to all features, and
        # zeroes the layer's MLP output there.
        return {
            "cross_attention_states": inputs.memory.to(dtype),  # cached features are float32
            "cross_attention_mask": added_mask(allowed | ~reads, dtype)[:, None],
            "full_text_row_masked_out_mask": reads[:, None].to(dtype),
        }

    def _own(self, inputs: Inputs) -> Tensor:
        """Return which features are not padding, (n, m): padding tiles come last."""
        assert inputs.memory is not None
        tiles = inputs.grid.sum(dim=1)  # 0 where there is no image
        position = torch.arange(inputs.memory.shape[1], device=tiles.device)
        return position[None] < self.tile_tokens * tiles[:, None]

    def vision_states(self, inputs: Inputs, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image's projected features, the same at every layer.

        ASSUME: an image has no states in the text's sequence. Its projected features, which the
        layers read, are taken as its state: the gap of layer l is the mean text state of l minus
        the mean projected feature.
        """
        assert inputs.memory is not None
        return inputs.memory, self._own(inputs)

    def generation_arguments(self, inputs: Inputs, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the features, and the mask of which tiles each position reads."""
        assert inputs.memory is not None
        tile = torch.arange(inputs.memory.shape[1] // self.tile_tokens, device=self.device)
        own = tile < inputs.grid[:, :1]
        reads = (input_ids == self.image_token_id).cumsum(dim=1) > 0
        return {
            "cross_attention_states": inputs.memory,
            "cross_attention_mask": (reads[:, :, None, None] & own[:, None, None]).long(),
        }

    @property
    def generator(self) -> Any:
        """Return an object whose `generate` takes features."""
        return _Generator(self.model)


class _Generator:
    """Wraps a model; its `generate` takes features instead of pixels."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, **arguments: Any) -> Any:
        """Decode, passing the features to the first step only.

        Later steps find their keys and values in the cache. Hugging Face drops pixels in later
        steps but not features, which each step would append to the cache again.
        """

        def first_step_only(_module: nn.Module, _given: object, named: dict[str, Any]) -> Any:
            cache = named.get("past_key_values")
            if cache is not None and cache.get_seq_length() > 0:
                named = named | {"cross_attention_states": None}
            return (), named

        handle = self._model.model.register_forward_pre_hook(first_step_only, with_kwargs=True)
        try:
            return self._model.generate(**arguments)
        finally:
            handle.remove()

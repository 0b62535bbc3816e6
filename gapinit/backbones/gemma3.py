"""Gemma 3: an image has a fixed number of tokens, which attend to each other in both directions.

Layers alternate between full attention and a sliding window; the layer's index decides which.
Hugging Face finds images by `token_type_ids` and, without them, silently makes image tokens causal.
Here both masks come from the image's positions. No text changes an image's states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from torch import Tensor
from transformers import Gemma3ForConditionalGeneration
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

from gapinit.backbones.base import LLAMA_MODULES, Backbone
from gapinit.backbones.inputs import Images, Inputs, added_mask
from gapinit.backbones.last_layer import rotary_layer
from gapinit.backbones.prompts import Prompts

ANSWER = "<end_of_turn>\n<start_of_turn>model\n"


class Gemma3Backbone(Backbone):
    """Gemma 3: SigLIP, a pooling projector, and a decoder with sliding windows."""

    model_class: ClassVar[Any] = Gemma3ForConditionalGeneration
    # Source: the chat template of the published weights, and the two newlines that their processor
    # puts on either side of an image. ASSUME: the papers do not print their prompts; the wording is
    # that of LLaVA's evaluations.
    default_prompts = Prompts(
        head="<start_of_turn>user\n\n\n<start_of_image>",
        caption=(
            f"<end_of_image>\n\nProvide a one-sentence caption for the provided image.{ANSWER}"
        ),
        question=(
            "<end_of_image>\n\n{question}\nAnswer the question using a single word or phrase."
            + ANSWER
        ),
        chat="<end_of_image>\n\n{question}" + ANSWER,
        turn="\n<start_of_turn>user\n{question}" + ANSWER,
        end="<end_of_turn>",
    )
    target_pattern = r"model\.language_model\.layers\.({layers})\." + LLAMA_MODULES
    # Some versions of transformers have one more module, `vision_model`, in the tower.
    vision_pattern = (
        r"model\.vision_tower\.(vision_model\.)?encoder\.layers\.\d+\."
        r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    )
    packs_texts = True
    last_layer = staticmethod(rotary_layer)

    def image_tokens(self, width: int, height: int) -> int:
        """Return the number of pooled patches, the same for every image."""
        return int(self.model.config.mm_tokens_per_image)

    def pixels(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return the whole images' pixels.

        ASSUME: no extra crops ("pan and scan"), as by default in the published processor.
        """
        reader = self.processor.image_processor
        found = reader(list(images), do_pan_and_scan=False, return_tensors="pt")
        return {"pixel_values": found["pixel_values"]}

    def image_features(self, pixels: Mapping[str, Tensor]) -> Images:
        """Return the pooled and projected patches, the same number for each image."""
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        return Images.equal(self.model.get_image_features(values, return_dict=True).pooler_output)

    def drop_vision(self) -> None:
        """Free the vision tower and the projector."""
        self.model.model.vision_tower = None
        self.model.model.multi_modal_projector = None

    def decoder_arguments(self, inputs: Inputs) -> dict[str, Any]:
        """Return both kinds of layers' masks, in which image tokens attend to each other."""
        start, end = (value[:, None] for value in self.image_span(inputs))
        position = inputs.positions
        seen = (position >= start) & (position < end)
        if inputs.segment is not None:
            sees = inputs.sees() | (seen[:, :, None] & seen[:, None, :])
            near = position[:, None, :] > position[:, :, None] - self.text_config.sliding_window
            kinds = {"full_attention": sees, "sliding_attention": sees & near}
            dtype = self.model.dtype
            added = {kind: added_mask(sees[:, None], dtype) for kind, sees in kinds.items()}
            return {"attention_mask": added}
        masks = create_masks_for_vision_model(
            config=self.text_config,
            inputs_embeds=inputs.states,
            attention_mask=None,
            past_key_values=None,
            position_ids=None,
            # Each token's image, from 0; -1 for text.
            block_sequence_ids=seen.long() - 1,
        )
        return {"attention_mask": masks}

    @property
    def generator(self) -> Any:
        """Return a copy of the model object whose `generate` takes embeddings.

        Gemma 3's `forward` takes them, but `generate` refuses arguments that the signature of
        `prepare_inputs_for_generation` does not name. Weights are shared; the model is unchanged.
        """
        model = copy(self.model)
        prepare = self.model.prepare_inputs_for_generation

        # `generate` inspects the names in this signature.
        def prepare_inputs_for_generation(
            input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any
        ) -> Any:
            return prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)

        model.prepare_inputs_for_generation = prepare_inputs_for_generation
        return model

    def generation_arguments(self, inputs: Inputs, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the token types from which Hugging Face builds the same masks."""
        return {"token_type_ids": (input_ids == self.image_token_id).long()}

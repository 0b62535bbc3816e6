"""A small random LLaVA-1.5 in the real classes, and what plain transformers takes for it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
PATCHES = 9
Marks = Literal["every piece", "first piece", "normalised"]
"""How a tokenizer of Llama's kind marks the beginning of a text with a space.

"normalised" is that of the published weights; newer ones mark every piece between special tokens,
or the first one alone.
"""


def llama_tokenizer(marks: Marks) -> Any:
    """Return a BPE tokenizer that writes a space as a mark, in front of a text, too."""
    from .backbone_cases import CORPUS

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=[*string.printable, "▁"],
        show_progress=False,
    )
    words = ["USER: hello ASSISTANT: a red star"] * 4
    tokenizer.train_from_iterator([*CORPUS, *words], trainer)
    # Words are kept apart in training only, so that no token goes across a space.
    if marks == "normalised":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = None
    else:
        scheme: Any = "always" if marks == "every piece" else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="right",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def llava_image_processor() -> Any:
    """Return CLIP's PIL image processor, for small images that it crops."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})


def small_llava(tokenizer: Any, **options: Any) -> Any:
    """Return a LLaVA of wide random weights."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from .backbone_cases import draw_weights

    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 400,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 12,
            "patch_size": 4,
            "projection_dim": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES,
        **options,
    )
    model = LlavaForConditionalGeneration(config)
    draw_weights(model, tokenizer.eos_token_id)
    return model.eval()


def write_llava(folder: Path) -> None:
    """Write a LLaVA whose tokenizer is of Llama's kind."""
    tokenizer = llama_tokenizer("normalised")
    small_llava(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    llava_image_processor().save_pretrained(folder)


def llava_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    """Return what `forward` takes beside ids and mask."""
    return dict(backbone.processor.image_processor(list(images), return_tensors="pt"))


def llava_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    """Return how many placeholders the processor puts, the same for all."""
    return PATCHES

"""Published architectures without their weights, from `config/architectures/<name>.yaml`.

Nothing is downloaded: the file holds the content of the published `config.json` and
`preprocessor_config.json`. A model is built on any device, `meta` included, with random weights,
the real image processor, and a byte-level stand-in for the published tokenizer, which is trained on
a few words and has the family's special tokens. Their ids replace those of the configuration; the
vocabulary size stays the same, and so every matrix's shape. A text has more tokens in the stand-in
than in the published tokenizer: `template_tokens` and `config/sizes.yaml` hold the real counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from gapinit.backbones import find_family, known_families
from gapinit.backbones.source import Dtype
from gapinit.config.yaml_files import Settings, read_settings
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import torch

    from gapinit.backbones.base import Backbone

VALUE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
STAND_IN_VOCABULARY = 420
STAND_IN_TEXTS = (
    "a photo of a man on a bench with two dogs in the park",
    "Provide a one-sentence caption for the provided image.",
    "Answer the question using a single word or phrase.",
    "You are a helpful assistant. system user model assistant USER: ASSISTANT: Question: answer:",
)


class ImageProcessor(Settings):
    """A class of transformers and its arguments."""

    class_name: str = Field(alias="class")
    arguments: dict[str, Any] = {}


class TemplateTokens(Settings):
    """How many tokens a caption's template has in the published tokenizer."""

    head: int = Field(default=0, ge=0)
    prompt: int = Field(default=1, ge=0)


class Architecture(Settings):
    """A published model without its weights."""

    config: dict[str, Any]
    """The keys of its Hugging Face configuration that differ from the class's defaults."""
    image_processor: ImageProcessor
    dtype: Dtype = "float32"
    """The dtype of the stored weights."""
    licence: str = ""
    gated: bool = False
    """Whether the hub requires an account that has accepted the licence."""
    template_tokens: TemplateTokens = TemplateTokens()

    @field_validator("config")
    @classmethod
    def _known_family(cls, config: dict[str, Any]) -> dict[str, Any]:
        known = known_families()
        if config.get("model_type") not in known:
            raise ValueError(
                f"model_type '{config.get('model_type')}' is not supported, expected one of: "
                f"{', '.join(known)}"
            )
        return config


def find_architecture(name: str, folder: Path) -> Architecture:
    """Read the architecture of a backbone; `folder` is `config/`."""
    path = folder / "architectures" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise GapinitError(
            f"backbone '{name}': no architecture in {path.parent}/, expected one of: {known}. Pass "
            "the checkout's config folder by --config-folder."
        )
    return read_settings(path, Architecture)


def build_architecture(
    architecture: Architecture,
    origin: str,
    device: torch.device | str = "meta",
    dtype: Dtype | None = None,
) -> Backbone:
    """Return the family's backbone with frozen random weights on a device and in a dtype.

    Raises GapinitError, naming `origin`, for a configuration that transformers refuses.
    """
    import torch
    import transformers

    from gapinit.backbones.loading import Processor

    kind = architecture.config["model_type"]
    family: Any = find_family(kind)
    tokenizer = _stand_in_tokenizer(kind)
    given = _with_special_ids(architecture.config, tokenizer)
    reader = getattr(transformers, architecture.image_processor.class_name, None)
    if reader is None:
        raise GapinitError(
            f"{origin}: key 'image_processor.class': transformers has no class "
            f"'{architecture.image_processor.class_name}'"
        )
    try:
        config = transformers.AutoConfig.for_model(**given)
        with torch.device(device):
            model = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=dtype or architecture.dtype
            )
        processor = Processor(tokenizer, reader(**architecture.image_processor.arguments))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise GapinitError(f"{origin}: transformers refuses these keys ({reason})") from None
    # `generate` of the model reads the ids from here.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval().requires_grad_(False)
    backbone: Backbone = family(model, processor)
    return backbone


@dataclass(frozen=True)
class _SpecialTokens:
    """The special tokens of a family."""

    eos: str
    pad: str
    bos: str | None = None
    """Added in front of every text."""
    others: tuple[str, ...] = ()
    outer: Mapping[str, str] = field(default_factory=dict)
    """Keys of the configuration's top level that hold the id of a token."""


_QWEN = _SpecialTokens(
    eos="<|im_end|>",
    pad="<|endoftext|>",
    others=("<|im_start|>",),
    outer={
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
)
_SPECIAL_TOKENS = {
    "blip-2": _SpecialTokens("</s>", "<pad>", "</s>", outer={"image_token_index": "<image>"}),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "gemma3": _SpecialTokens(
        "<eos>",
        "<pad>",
        "<bos>",
        others=("<start_of_turn>", "<end_of_turn>"),
        outer={
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
    ),
    "mllama": _SpecialTokens(
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|begin_of_text|>",
        others=("<|start_header_id|>", "<|end_header_id|>"),
        outer={"image_token_index": "<|image|>"},
    ),
    "llava": _SpecialTokens("</s>", "<pad>", "<s>", outer={"image_token_index": "<image>"}),
}


def _stand_in_tokenizer(model_type: str) -> Any:
    """Return a byte-level tokenizer with the family's special tokens."""
    from gapinit.backbones.byte_level import byte_level_tokenizer

    tokens = _SPECIAL_TOKENS.get(model_type)
    if tokens is None:
        raise GapinitError(
            f"model type '{model_type}': no stand-in tokenizer, expected one of: "
            f"{', '.join(_SPECIAL_TOKENS)}"
        )
    special = [tokens.pad, tokens.eos, *([tokens.bos] if tokens.bos else [])]
    return byte_level_tokenizer(
        STAND_IN_TEXTS * 4,
        STAND_IN_VOCABULARY,
        list(dict.fromkeys([*special, *tokens.others, *tokens.outer.values()])),
        first=tokens.bos,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        bos_token=tokens.bos,
    )


def _with_special_ids(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return the configuration with the special ids of the stand-in."""
    tokens = _SPECIAL_TOKENS[config["model_type"]]
    known = tokenizer.get_vocab()
    text = {**config.get("text_config", {})}
    if text.get("vocab_size", len(known)) < len(known):
        raise GapinitError(
            f"text_config.vocab_size: expected at least {len(known)}, the tokens of the stand-in "
            f"tokenizer, found {text['vocab_size']}"
        )
    text |= {"eos_token_id": known[tokens.eos], "pad_token_id": known[tokens.pad]}
    if tokens.bos is not None:
        text["bos_token_id"] = known[tokens.bos]
    outer = {key: known[token] for key, token in tokens.outer.items()}
    return {**config, **outer, "text_config": text}

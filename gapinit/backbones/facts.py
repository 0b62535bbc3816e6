"""A backbone's numbers of weights, widths, tokens and bytes, computed from its shapes.

The model is built on the device `meta` from its configuration, without weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.backbones import PRETRAINED, pretrained_settings
from gapinit.backbones.architecture import (
    VALUE_BYTES,
    Architecture,
    TemplateTokens,
    build_architecture,
    find_architecture,
)
from gapinit.backbones.hub import HubSettings
from gapinit.config.yaml_files import read_settings, read_yaml
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.backbones.source import Dtype

PHOTO = (640, 480)
"""Width and height of most photographs of COCO."""
STATE_BYTES = 4
"""Bytes of a number of a pooled state or an adapter: float32 for every backbone dtype."""


@dataclass(frozen=True)
class Target:
    """An adapted matrix of a layer."""

    module: str
    """Its name within the layer."""
    d_out: int
    d_in: int
    takes: str
    """The direction that B gets: `gap` where d_out is the hidden size, else `W0 gap`."""


@dataclass(frozen=True)
class Facts:
    """A backbone's sizes: numbers of entries, or bytes where the name says so."""

    backbone: Backbone
    dtype: str
    """The dtype in which the weights are loaded."""
    template: TemplateTokens

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a weight, or of a number in a trunk or a feature file."""
        return VALUE_BYTES[self.dtype]

    @property
    def hidden_size(self) -> int:
        """Return d."""
        return self.backbone.hidden_size

    @property
    def num_layers(self) -> int:
        """Return L."""
        return self.backbone.num_layers

    @cached_property
    def parameters(self) -> int:
        """Return the number of weights of the whole model, shared ones counted once."""
        return _count(self.backbone.model.parameters())

    @cached_property
    def language_parameters(self) -> int:
        """Return the number of weights of the decoder and the output matrix."""
        model = self.backbone
        return _count([*model.decoder.parameters(), *model.output_head.parameters()])

    @property
    def vision_parameters(self) -> int:
        """Return the number of all other weights: tower, Q-Former, projector."""
        return self.parameters - self.language_parameters

    @cached_property
    def layer_parameters(self) -> list[int]:
        """Return each decoder layer's number of weights, bottom first."""
        return [_count(layer.parameters()) for layer in self.backbone.decoder_layers]

    @cached_property
    def output_parameters(self) -> int:
        """Return the number of weights of the output matrix: hidden size times vocabulary."""
        return _count(self.backbone.output_head.parameters())

    @property
    def vocabulary(self) -> int:
        """Return the number of logits at a position."""
        return self.output_parameters // self.hidden_size

    @cached_property
    def targets(self) -> list[list[Target]]:
        """Return the adapted matrices of each layer."""
        found: list[list[Target]] = [[] for _ in range(self.num_layers)]
        for name, module in self.backbone.named_targets(range(self.num_layers)).items():
            place, _, rest = name.partition(".layers.")[2].partition(".")
            takes = "gap" if module.out_features == self.hidden_size else "W0 gap"
            found[int(place)].append(Target(rest, module.out_features, module.in_features, takes))
        return found

    def adapter(self, layers: Iterable[int], rank: int) -> int:
        """Return the number of weights of a LoRA on all matrices of some layers."""
        return sum(rank * (it.d_in + it.d_out) for layer in layers for it in self.targets[layer])

    @cached_property
    def mlp_width(self) -> int:
        """Return the largest width within a layer."""
        return max(max(it.d_in, it.d_out) for targets in self.targets for it in targets)

    def image_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return how many tokens an image of this width and height has."""
        return self.backbone.image_tokens(*size)

    def prefix_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return the tokens of template and image in front of the text."""
        return self.template.head + (1 if self.backbone.cross_attends else self.image_tokens(size))

    def memory_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return the image tokens that cross-attention reads; 0 for most families."""
        return self.image_tokens(size) if self.backbone.cross_attends else 0

    def kv_bytes(self, tokens: int, size: tuple[int, int] = PHOTO) -> int:
        """Return the bytes of the key-value cache for a sequence, prefix included."""
        total = 0
        for layer in self.backbone.decoder_layers:
            for name, module in layer.named_modules():
                if name.endswith(("k_proj", "v_proj")):
                    count = self.memory_tokens(size) if "cross_attn" in name else tokens
                    total += count * module.out_features
        return total * self.value_bytes

    def vision_patches(self, size: tuple[int, int] = PHOTO) -> int:
        """Return how many patches of an image the vision tower processes."""
        vision = self._vision
        merge = getattr(vision, "spatial_merge_size", None)
        if merge is not None:
            return self.image_tokens(size) * int(merge) ** 2
        if self.backbone.cross_attends:
            return self.image_tokens(size)
        return int((vision.image_size // vision.patch_size) ** 2)

    @property
    def vision_width(self) -> tuple[int, int]:
        """Return the tower's hidden and inner width."""
        vision = self._vision
        # Qwen2-VL's `hidden_size` is the width of the output.
        hidden = int(getattr(vision, "embed_dim", 0) or vision.hidden_size)
        inner = getattr(vision, "intermediate_size", None)
        return hidden, int(inner or vision.mlp_ratio * hidden)

    @property
    def _vision(self) -> Any:
        return self.backbone.model.config.vision_config

    def states_bytes(self, pairs: int) -> int:
        """Return the bytes of both modalities' pooled states, in all layers."""
        return 2 * self.num_layers * pairs * self.hidden_size * STATE_BYTES

    def image_trunk_bytes(self, size: tuple[int, int] = PHOTO) -> int:
        """Return the bytes of an image in a trunk: its prefix and its cross-attended tokens."""
        rows = self.prefix_tokens(size) + self.memory_tokens(size)
        return rows * self.hidden_size * self.value_bytes

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of all weights in `dtype`."""
        return self.parameters * self.value_bytes


def layer_groups(facts: Facts) -> list[tuple[Sequence[int], list[Target]]]:
    """Group the layers by their adapted matrices."""
    groups: dict[tuple[Target, ...], list[int]] = {}
    for layer, targets in enumerate(facts.targets):
        groups.setdefault(tuple(targets), []).append(layer)
    return [(layers, list(targets)) for targets, layers in groups.items()]


def backbone_facts(name: str, folder: Path) -> Facts:
    """Return the facts of a backbone by the name of its file; `folder` is `config/`.

    Published backbones need an architecture file, small ones only their settings. Raises
    GapinitError, listing the known names, for an unknown one.
    """
    path = folder / "backbones" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise GapinitError(
            f"backbone '{name}': no such file in {path.parent}/, expected one of: {known}. "
            "Pass another config folder by --config-folder."
        )
    if read_yaml(path).get("family") in PRETRAINED:
        return _made_here(path)
    settings = read_settings(path, HubSettings)
    return architecture_facts(find_architecture(name, folder), name, settings.dtype)


def architecture_facts(
    architecture: Architecture, origin: str, dtype: Dtype | None = None
) -> Facts:
    """Return the facts of an architecture; `dtype`: None for that of the stored weights."""
    chosen = dtype or architecture.dtype
    backbone = build_architecture(architecture, origin, "meta", chosen)
    return Facts(backbone, chosen, architecture.template_tokens)


def _made_here(path: Path) -> Facts:
    """Return the facts of a small backbone; its tokenizer is trained on the template alone."""
    import torch

    settings = pretrained_settings(path)
    words = [text for text in settings.prompts.model_dump().values() if isinstance(text, str)]
    with torch.device("meta"):
        backbone = settings.build(words * 4)
    texts = backbone.texts
    prompt = len(texts.encode_prompts([backbone.prompts.caption])[0])
    return Facts(backbone, "float32", TemplateTokens(head=len(texts.head), prompt=prompt))


def _count(parameters: Iterable[Any]) -> int:
    """Return the number of entries of all distinct parameters."""
    return sum(it.numel() for it in {id(it): it for it in parameters}.values())

"""What a backbone's shapes alone say: counts, widths, tokens, bytes. Weights may be on `meta`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gapinit.backbones.architecture import VALUE_BYTES, TemplateTokens

if TYPE_CHECKING:
    from torch import nn

    from gapinit.backbones.base import Backbone

PHOTO = (640, 480)
"""Width and height of most photographs of COCO."""
STATE_BYTES = 4
"""A pooled state, an adapter's weight: float32 whatever the backbone's dtype."""


@dataclass(frozen=True)
class Target:
    """A matrix that is adapted in a layer."""

    module: str
    """Its name within the layer."""
    d_out: int
    d_in: int
    takes: str
    """`gap`: it writes the hidden width and takes g itself; `W0 gap`: it takes W0 g."""

    def adapter(self, rank: int) -> int:
        """Return the numbers of a LoRA of this rank on it."""
        return rank * (self.d_in + self.d_out)


@dataclass(frozen=True)
class Facts:
    """A backbone's shapes; every count is of numbers unless it says bytes."""

    backbone: Backbone
    dtype: str
    """What its weights are loaded in."""
    template: TemplateTokens

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a weight, and of a state in a trunk or a feature file."""
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
        """Return the weights of the whole model, a shared matrix once."""
        return _count(self.backbone.model.parameters())

    @cached_property
    def language_parameters(self) -> int:
        """Return those of the decoder and the output matrix."""
        model = self.backbone
        return _count([*model.decoder.parameters(), *model.output_head.parameters()])

    @property
    def vision_parameters(self) -> int:
        """Return all others: tower, Q-Former, projector."""
        return self.parameters - self.language_parameters

    @cached_property
    def layer_parameters(self) -> list[int]:
        """Return each decoder layer's weights, bottom first."""
        return [_count(layer.parameters()) for layer in self.backbone.decoder_layers]

    @cached_property
    def output_parameters(self) -> int:
        """Return the numbers of the output matrix: hidden width times vocabulary."""
        return _count(self.backbone.output_head.parameters())

    @property
    def vocabulary(self) -> int:
        """Return how many logits a position has."""
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
        """Return the numbers of a LoRA on all matrices of some layers."""
        return sum(target.adapter(rank) for layer in layers for target in self.targets[layer])

    def inputs_read(self, layer: int) -> int:
        """Return the width of all inputs that a layer's adapters read, together."""
        return sum(target.d_in for target in self.targets[layer])

    @cached_property
    def mlp_width(self) -> int:
        """Return the widest inner width of a layer."""
        return max(max(it.d_in, it.d_out) for targets in self.targets for it in targets)

    def image_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return how many tokens an image of a width and height has."""
        return self.backbone.image_tokens(*size)

    def prefix_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return what stands in the text stream up to the image's end: template and image."""
        return self.template.head + (1 if self.backbone.cross_attends else self.image_tokens(size))

    def memory_tokens(self, size: tuple[int, int] = PHOTO) -> int:
        """Return the image tokens that are read by cross-attention; 0 for most families."""
        return self.image_tokens(size) if self.backbone.cross_attends else 0

    def kv_bytes(self, tokens: int, size: tuple[int, int] = PHOTO) -> int:
        """Return the key-value cache of a sequence of so many tokens, prefix included."""
        total = 0
        for layer in self.backbone.decoder_layers:
            for name, module in layer.named_modules():
                if name.endswith(("k_proj", "v_proj")):
                    count = self.memory_tokens(size) if "cross_attn" in name else tokens
                    total += count * _out_features(module)
        return total * self.value_bytes

    def vision_patches(self, size: tuple[int, int] = PHOTO) -> int:
        """Return how many patches of an image the vision tower works on."""
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
        # Qwen2-VL calls the width of what comes out `hidden_size`.
        hidden = int(getattr(vision, "embed_dim", 0) or vision.hidden_size)
        inner = getattr(vision, "intermediate_size", None)
        return hidden, int(inner or vision.mlp_ratio * hidden)

    @property
    def _vision(self) -> Any:
        return self.backbone.model.config.vision_config

    def states_bytes(self, pairs: int) -> int:
        """Return the bytes of pooled states, both modalities, of so many pairs."""
        return 2 * self.num_layers * pairs * self.hidden_size * STATE_BYTES

    def image_trunk_bytes(self, size: tuple[int, int] = PHOTO) -> int:
        """Return the bytes of an image in a trunk: its prefix, and what is read beside it."""
        rows = self.prefix_tokens(size) + self.memory_tokens(size)
        return rows * self.hidden_size * self.value_bytes

    @property
    def token_trunk_bytes(self) -> int:
        """Return the bytes of a text token in a trunk below the first adapted layer."""
        return self.hidden_size * self.value_bytes

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of all weights in their dtype."""
        return self.parameters * self.value_bytes


def layer_groups(facts: Facts) -> list[tuple[Sequence[int], list[Target]]]:
    """Return the layers that have the same adapted matrices, together."""
    groups: list[tuple[list[int], list[Target]]] = []
    for layer, targets in enumerate(facts.targets):
        for layers, known in groups:
            if known == targets:
                layers.append(layer)
                break
        else:
            groups.append(([layer], targets))
    return list(groups)


def _out_features(module: nn.Module) -> int:
    return int(module.out_features)  # type: ignore[arg-type]


def _count(parameters: Iterable[Any]) -> int:
    """Return how many numbers there are in parameters, each of them once."""
    return sum(it.numel() for it in {id(it): it for it in parameters}.values())

"""Operations of a BLIP-2 training step from its shapes; a multiply-add is two operations.

Per layer of width d and inner width f, over T tokens: 4 d^2 + 2 d f weights, 2 operations each and
token; attention over sequences of n tokens 2 * 2 * d * n^2 / 2 (causal, two products). Backward
through frozen weights costs the product with the transposed weight only, as much as forward, and
attention twice as much. A rank-1 adapter's own arithmetic is below a thousandth and left out.

- Tail: forward and backward of the adapted layers. The lowest one's inputs need no gradient, so its
  q, k, v have no backward product. The last one has keys and values of all tokens and the rest
  (q, o, MLP) of labelled positions only; so has the output matrix.
- Peer: vision tower, Q-Former and all layers forward, the adapted ones backward, the output matrix
  of all positions, forward and backward. Nothing of the lower layers needs a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """One training batch: length and number of labelled positions of each sequence."""

    lengths: Sequence[int]
    labelled: Sequence[int]

    @property
    def tokens(self) -> int:
        """Return all tokens that are not padding."""
        return sum(self.lengths)

    @property
    def learned(self) -> int:
        """Return all labelled positions."""
        return sum(self.labelled)


def products(work: Work, config: Any, adapted: int) -> list[Shape]:
    """Return the tail's matrix products, (rows, d_in, d_out), forward and backward."""
    text = config.get_text_config()
    d, inner, vocabulary = text.hidden_size, text.ffn_dim, text.vocab_size
    shapes: list[Shape] = []
    for layer in range(adapted):
        every, last = work.tokens, layer == adapted - 1
        rows = work.learned if last else every
        keys = [(every, d, d)] * 2
        rest = [(rows, d, d), (rows, d, inner), (rows, inner, d)]
        query = [(rows, d, d)]
        shapes += [*keys, *query, *rest]
        back = rest if layer == 0 else [*keys, *query, *rest]
        shapes += [(rows_, out, into) for rows_, into, out in back]
    shapes += [(work.learned, d, vocabulary), (work.learned, vocabulary, d)]
    return shapes


def attention(lengths: Sequence[int], width: int, passes: float) -> float:
    """Return the operations of causal attention; a backward pass counts twice a forward one."""
    return passes * sum(2.0 * width * length**2 for length in lengths)


def tail_flops(work: Work, config: Any, adapted: int) -> float:
    """Return the operations of the tail's forward and backward pass."""
    d = config.get_text_config().hidden_size
    matrices = sum(2.0 * rows * into * out for rows, into, out in products(work, config, adapted))
    # The last layer asks at labelled positions only.
    few = sum(4.0 * d * n * m for n, m in zip(work.lengths, work.labelled, strict=True))
    return matrices + attention(work.lengths, d, 3.0 * (adapted - 1)) + 3.0 * few / 2


def full_flops(work: Work, config: Any, adapted: int) -> float:
    """Return the operations of the whole model's forward pass and the adapted layers' backward."""
    text, images = config.get_text_config(), len(work.lengths)
    d, inner, vocabulary = text.hidden_size, text.ffn_dim, text.vocab_size
    layer = 4 * d * d + 2 * d * inner
    passes = text.num_hidden_layers + adapted
    total = 2.0 * work.tokens * (layer * passes - 3 * d * d)
    total += 2.0 * 2 * work.tokens * d * vocabulary
    total += attention(work.lengths, d, text.num_hidden_layers + 2.0 * adapted)
    return total + images * image_flops(config)


def image_flops(config: Any) -> float:
    """Return the operations of one image's tokens: tower, Q-Former and projection."""
    vision, q, queries = config.vision_config, config.qformer_config, config.num_query_tokens
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    weights = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = vision.num_hidden_layers * (
        2.0 * patches * weights + 4.0 * vision.hidden_size * patches**2
    )
    tower += 2.0 * (patches - 1) * 3 * vision.patch_size**2 * vision.hidden_size
    own = 4 * q.hidden_size**2 + 2 * q.hidden_size * q.intermediate_size
    former = q.num_hidden_layers * (2.0 * queries * own + 4.0 * q.hidden_size * queries**2)
    crossing = -(-q.num_hidden_layers // q.cross_attention_frequency)
    former += crossing * (
        2.0 * queries * 2 * q.hidden_size**2
        + 2.0 * patches * 2 * q.encoder_hidden_size * q.hidden_size
        + 4.0 * q.hidden_size * queries * patches
    )
    return tower + former + 2.0 * queries * q.hidden_size * config.get_text_config().hidden_size

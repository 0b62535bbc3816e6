"""The trunk computes an image's prefix once: packed texts have the states they have alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gapinit.backbones.base import Backbone

from .backbone_cases import CAPTIONS, CASES, Case, World, pictures

GROUPS = [[0, 1, 2], [3], [4, 0], [1, 4, 3, 2], [2]]
"""Of each picture, its captions: as many as images have, one or several."""


def groups_of(backbone: Backbone) -> list[list[list[int]]]:
    return [
        [ids for ids, _ in backbone.encode_captions([CAPTIONS[text] for text in group], 20)]
        for group in GROUPS
    ]


def alone(backbone: Backbone, groups: list[list[list[int]]]) -> list[list[Tensor]]:
    """Return each text's states, prefix included, from a sequence of its own."""
    images = backbone.look(pictures())
    rows = [row for row, group in enumerate(groups) for _ in group]
    inputs = backbone.embed(images.take(rows), [text for group in groups for text in group])
    states = iter(zip(backbone.decode(inputs), inputs.length.tolist(), strict=True))
    return [[found[:length] for found, length in (next(states) for _ in group)] for group in groups]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("layers", [1, 2, None])
@torch.no_grad()
def test_packed_texts_have_the_states_that_they_have_alone(
    case: Case, layers: int | None, world_of: Callable[[Case], World]
) -> None:
    backbone = world_of(case).backbone()
    assert backbone.packs_texts
    if layers is not None:
        backbone.keep_below(layers)
    groups = groups_of(backbone)
    inputs = backbone.embed_packed(backbone.look(pictures()), groups)
    states = backbone.decode(inputs)
    for row, texts in enumerate(alone(backbone, groups)):
        start = prefix = int(inputs.prefix_length[row])
        for text in texts:
            end = start + len(text) - prefix
            found = torch.cat([states[row, :prefix], states[row, start:end]])
            torch.testing.assert_close(found, text, rtol=1e-4, atol=1e-4)
            start = end
        assert start == int(inputs.length[row])

"""`gapinit rehearse --device meta`: parameters and bytes of a backbone, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gapinit.backbones.facts import PHOTO, STATE_BYTES, Facts, layer_groups
from gapinit.progress import print_table, show_bytes

RANKS = (1, 8)
NEW_TOKENS = 32


def shapes(
    facts: Facts, name: str, layers: Sequence[int], pairs: int, rank: int = 1
) -> dict[str, Any]:
    """Return the content of `print_shapes` as JSON; `rank` is added to ranks 1 and 8."""
    tokens = facts.prefix_tokens() + facts.template.prompt + NEW_TOKENS
    return {
        "backbone": name,
        "dtype": facts.dtype,
        "parameters": facts.parameters,
        "vision_parameters": facts.vision_parameters,
        "language_parameters": facts.language_parameters,
        "adapted_layers": list(layers),
        "adapted_layer_parameters": sum(facts.layer_parameters[layer] for layer in layers),
        "weights_bytes": facts.weights_bytes,
        "hidden_size": facts.hidden_size,
        "layers": facts.num_layers,
        "vocabulary": facts.vocabulary,
        "image_size": list(PHOTO),
        "image_tokens": facts.image_tokens(),
        "prefix_tokens": facts.prefix_tokens(),
        "memory_tokens": facts.memory_tokens(),
        "targets": [
            {
                "layers": list(group),
                "modules": [
                    {"module": it.module, "d_out": it.d_out, "d_in": it.d_in, "takes": it.takes}
                    for it in targets
                ],
            }
            for group, targets in layer_groups(facts)
        ],
        "adapters": {
            str(one): {
                "parameters": facts.adapter(layers, one),
                "bytes": facts.adapter(layers, one) * STATE_BYTES,
            }
            for one in sorted({*RANKS, rank})
        },
        "pairs": pairs,
        "states_bytes": facts.states_bytes(pairs),
        "trunk_bytes_per_image": facts.image_trunk_bytes(),
        "trunk_bytes_per_token": facts.hidden_size * facts.value_bytes,
        "sequence_tokens": tokens,
        "kv_cache_bytes_per_sequence": facts.kv_bytes(tokens),
    }


def print_shapes(found: dict[str, Any]) -> None:
    """Print the shapes as tables."""
    adapted = found["adapted_layers"]
    lines = [
        ("parameters", _count(found["parameters"])),
        ("  vision (tower, projector)", _count(found["vision_parameters"])),
        ("  language (decoder, output)", _count(found["language_parameters"])),
        (f"  adapted layers ({_span(adapted)})", _count(found["adapted_layer_parameters"])),
        (f"weights in {found['dtype']}", show_bytes(found["weights_bytes"])),
        ("hidden size, layers", f"{found['hidden_size']}, {found['layers']}"),
        ("vocabulary", f"{found['vocabulary']:,}"),
        ("image tokens at 640 x 480", f"{found['image_tokens']:,}"),
        ("  read by cross-attention", f"{found['memory_tokens']:,}"),
        ("  in the text sequence, with template", f"{found['prefix_tokens']:,}"),
        (f"states of {found['pairs']} pairs", show_bytes(found["states_bytes"])),
        ("trunk, per image", show_bytes(found["trunk_bytes_per_image"])),
        ("trunk, per caption token", show_bytes(found["trunk_bytes_per_token"])),
        (
            f"key-value cache of {found['sequence_tokens']} tokens",
            show_bytes(found["kv_cache_bytes_per_sequence"]),
        ),
    ]
    for rank, adapter in found["adapters"].items():
        text = f"{_count(adapter['parameters'])}, {show_bytes(adapter['bytes'])}"
        lines.append((f"adapter at rank {rank}", text))
    print_table(found["backbone"], ("", ""), lines)
    rows = [
        (_span(group["layers"]), it["module"], f"{it['d_out']} x {it['d_in']}", it["takes"])
        for group in found["targets"]
        for it in group["modules"]
    ]
    print_table(
        "adapted matrices, and the side of the gap in B",
        ("layers", "matrix", "d_out x d_in", "B"),
        rows,
    )


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _span(layers: Sequence[int]) -> str:
    """Return layer numbers as ranges: 0-2, 4."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)

"""Damages for any file, and for JSON, YAML, HDF5 and safetensors in particular; all are seeded.

A damage is a name and a change of the file at a path. Nothing here knows what the file is for.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = tuple[str, Callable[[Path], object]]


class Raw(str):
    """Text that stands in a JSON file as it is."""


def edit_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


def flips(draw: random.Random, count: int) -> Iterator[Damage]:
    """Yield damages of one flipped bit each, anywhere in the file."""
    for number in range(count):
        share, bit = draw.random(), draw.randrange(8)
        yield (
            f"bit {bit} flipped at {share:.3f} ({number})",
            edit_bytes(lambda c, s=share, b=bit: flipped(c, int(s * len(c)), b)),
        )


def of_any_file(draw: random.Random) -> Iterator[Damage]:
    """Yield damages that any file can have."""
    yield "emptied", lambda path: path.write_bytes(b"")
    for share in (0.02, 0.5, 0.97):
        yield (f"cut at {share}", edit_bytes(lambda c, s=share: c[: int(len(c) * s)]))
    yield "one byte short", edit_bytes(lambda c: c[:-1])
    yield "begins with garbage", edit_bytes(lambda c: draw.randbytes(64) + c[64:])
    yield "all zeros", edit_bytes(lambda c: bytes(len(c)))
    yield "garbage behind it", edit_bytes(lambda c: c + draw.randbytes(100))
    yield "twice", edit_bytes(lambda c: c + c)
    yield "a picture", edit_bytes(lambda c: b"\x89PNG\r\n\x1a\n" + draw.randbytes(200))
    yield "an error page", edit_bytes(lambda c: b"<!DOCTYPE html><title>404</title>")
    yield (
        "a Git LFS pointer",
        edit_bytes(lambda c: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    )
    yield "missing", lambda path: path.unlink()
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    yield "a dangling link", lambda path: (path.unlink(), path.symlink_to("nowhere"))
    yield "a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name))


def of_text(draw: random.Random) -> Iterator[Damage]:
    """Yield damages of text files; some of them are no damage at all."""
    yield "BOM", edit_bytes(lambda c: b"\xef\xbb\xbf" + c)
    yield "UTF-16", edit_bytes(lambda c: c.decode("utf-8").encode("utf-16"))
    yield "Latin-1", edit_bytes(lambda c: c.replace(b"a", b"\xe4"))
    yield "CRLF", edit_bytes(lambda c: c.replace(b"\n", b"\r\n"))
    yield "NUL inside", edit_bytes(lambda c: c[: len(c) // 2] + b"\0" + c[len(c) // 2 :])
    yield "control characters", edit_bytes(lambda c: c.replace(b" ", b"\x1b", 3))
    yield "overlong UTF-8", edit_bytes(lambda c: c.replace(b"/", b"\xc0\xaf"))


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a negative number": -1,
    "zero": 0,
    "a float": 1.5,
    "an integral float": 2.0,
    "a huge number": 10**30,
    "a number without end": Raw("9" * 5000),
    "1e999": Raw("1e999"),
    "NaN": Raw("NaN"),
    "-Infinity": Raw("-Infinity"),
    "text": "no",
    "no text": "",
    "half a pair": Raw('"\\ud800"'),
    "NUL": "a\0b",
    "a path that climbs": "../../../../etc/passwd",
    "a command": "$(touch pwned); `touch pwned` && 'x' \"y\"",
    "long text": "x" * 100_000,
    "a list": [],
    "an object": {},
    "deep": Raw("[" * 3000 + "]" * 3000),
    "too deep": Raw("[" * 200_000 + "]" * 200_000),
}


def nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    yield place
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from nodes(child, (*place, key))


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a JSON value with another value at a path."""
    if not place:
        return value
    changed = copy.deepcopy(content)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def dumped(value: Any) -> str:
    """Write JSON in which `Raw` text stands unquoted."""
    raw: list[str] = []

    def mark(item: Any) -> Any:
        if isinstance(item, Raw):
            raw.append(str(item))
            return f"@raw{len(raw) - 1}@"
        if isinstance(item, dict):
            return {key: mark(child) for key, child in item.items()}
        return [mark(child) for child in item] if isinstance(item, list) else item

    text = json.dumps(mark(value))
    for number, item in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', item)
    return text


def _shallow(content: Any, draw: random.Random, count: int) -> list[tuple[Any, ...]]:
    """Draw places, each level of depth as likely: a long list would have nearly all of them."""
    levels: dict[int, list[tuple[Any, ...]]] = {}
    for place in nodes(content):
        levels.setdefault(len(place), []).append(place)
    return [draw.choice(levels[draw.choice(list(levels))]) for _ in range(count)]


def of_json(content: Any, draw: random.Random, count: int) -> Iterator[Damage]:
    """Yield damages of a JSON file with this content."""
    names = list(VALUES)
    for number, place in enumerate(_shallow(content, draw, count)):
        name = names[number % len(names)]
        text = dumped(replaced(content, place, VALUES[name]))
        where = ".".join(map(str, place)) or "top"
        yield f"{name} at {where}", lambda path, t=text: path.write_text(t)
    objects = [p for p in nodes(content) if isinstance(_at(content, p), dict) and _at(content, p)]
    for place in draw.sample(objects, min(4, len(objects))):
        key = draw.choice(list(_at(content, place)))
        gone = replaced(content, place, {k: v for k, v in _at(content, place).items() if k != key})
        where = ".".join(map(str, (*place, key)))
        yield f"{where} gone", lambda path, g=gone: path.write_text(json.dumps(g))
        twice = dumped(replaced(content, place, Raw(_twice(_at(content, place), key))))
        yield f"{where} twice", lambda path, t=twice: path.write_text(t)


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def _twice(value: dict[str, Any], key: str) -> str:
    inner = json.dumps(value)[1:-1]
    return f"{{{inner}, {json.dumps(key)}: {json.dumps(value[key])}}}"


YAML = {
    "a Python object": "!!python/object/apply:os.system ['touch pwned']\n",
    "a Python name": "name: !!python/name:os.system\n",
    "aliases without end": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "an alias of itself": "a: &a\n  b: *a\n",
    "tabs": "name:\n\t- x\n",
    "a list at the top": "- a\n- b\n",
    "a number at the top": "7\n",
    "two documents": "name: a\n---\nname: b\n",
    "a key that is a list": "? [a, b]\n: c\n",
    "a key that is null": "~: c\n",
    "a date": "name: 2001-01-01\n",
    "unfinished": "name: [a, b\n",
    "too deep": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "NaN": "seed: .nan\n",
    "merge of nothing": "<<: 3\n",
}


def of_yaml(content: Any, draw: random.Random, count: int) -> Iterator[Damage]:
    """Yield damages of a YAML file with this content (JSON is YAML, mostly)."""
    for name, text in YAML.items():
        yield name, lambda path, t=text: path.write_text(t)
        # Behind what is good, where it is one more key.
        yield (
            f"{name}, behind what is good",
            lambda path, t=text: path.write_text(path.read_text() + "\n" + t),
        )
    yield from of_json(content, draw, count)

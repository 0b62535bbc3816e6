"""Damages of files that hold arrays: HDF5 and safetensors."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .mutate import Damage, edit_bytes


def _hdf5(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def of_hdf5(path: Path) -> Iterator[Damage]:
    """Yield damages of an HDF5 file with the datasets of the one at `path`."""
    with h5py.File(path, "r") as file:
        names = [name for name in file if isinstance(file[name], h5py.Dataset)]
        shapes = {name: (file[name].shape, file[name].dtype) for name in names}
        attributes = list(file.attrs)

    def put(name: str, value: Any, **options: Any) -> Callable[[Path], object]:
        def change(file: h5py.File) -> None:
            if name in file:
                del file[name]
            file.create_dataset(name, data=value, **options)

        return _hdf5(change)

    for name, (shape, dtype) in shapes.items():
        yield f"{name} gone", _hdf5(lambda f, n=name: f.pop(n))
        yield f"{name} a number", put(name, 3.0)
        yield f"{name} flat", put(name, np.zeros(5, "f4"))
        yield f"{name} text", put(name, ["a", "b"])
        if dtype.kind in "iu":
            yield f"{name} negative", put(name, np.full(shape, -5, dtype="i8"))
            yield f"{name} huge", put(name, np.full(shape, 2**62, dtype="i8"))
            yield f"{name} as float", put(name, np.full(shape, 0.5))
        if dtype.kind == "f":
            bad = np.ones(shape, dtype)
            bad.flat[bad.size // 2] = np.nan
            yield f"{name} with NaN", put(name, bad)
            yield f"{name} infinite", put(name, np.full(shape, np.inf, dtype))
            yield f"{name} zero", put(name, np.zeros(shape, dtype))
            yield f"{name} chunked", put(name, np.ones(shape, dtype), compression="gzip")
            yield (
                f"{name} half as long",
                put(name, np.ones((max(1, shape[0] // 2), *shape[1:]), dtype)),
            )
        yield (
            f"{name} never written",
            _hdf5(
                lambda f, n=name, d=dtype: (
                    f.pop(n),
                    f.create_dataset(n, (1 << 40,), d if d.kind in "iuf" else "f4"),
                )
            ),
        )
        yield (
            f"{name} a group",
            _hdf5(lambda f, n=name: (f.pop(n), f.create_group(n))),
        )
        yield (
            f"{name} an external link",
            _hdf5(
                lambda f, n=name: (
                    f.pop(n),
                    f.__setitem__(n, h5py.ExternalLink("/etc/passwd", "/x")),
                )
            ),
        )
        yield (
            f"{name} in another file",
            _hdf5(
                lambda f, n=name, s=shape: (
                    f.pop(n),
                    f.create_dataset(n, s, "u1", external=[("/etc/passwd", 0, 10**6)]),
                )
            ),
        )
        break_link = h5py.SoftLink("/nowhere")
        yield (
            f"{name} a dangling link",
            _hdf5(lambda f, n=name, b=break_link: (f.pop(n), f.__setitem__(n, b))),
        )
    for name in attributes:
        yield f"@{name} gone", _hdf5(lambda f, n=name: f.attrs.__delitem__(n))
        yield f"@{name} a list", _hdf5(lambda f, n=name: f.attrs.__setitem__(n, [1, 2, 3]))
        yield f"@{name} no JSON", _hdf5(lambda f, n=name: f.attrs.__setitem__(n, "{"))
        yield f"@{name} empty", _hdf5(lambda f, n=name: f.attrs.__setitem__(n, h5py.Empty("f")))
    yield "another kind", _hdf5(lambda f: f.attrs.__setitem__("kind", "other"))


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header = change(header) or header
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return apply


def of_safetensors(draw: random.Random) -> Iterator[Damage]:
    """Yield damages of a safetensors file."""

    def first(header: dict[str, Any]) -> Any:
        return header[next(name for name in header if name != "__metadata__")]

    yield "a header without end", edit_bytes(lambda c: struct.pack("<Q", 2**63) + c[8:])
    yield "a header of nothing", edit_bytes(lambda c: struct.pack("<Q", 0) + c[8:])
    for name, change in {
        "no JSON": lambda h: b"{",
        "a list": lambda h: b"[1]",
        "unknown dtype": lambda h: first(h).update(dtype="Q7"),
        "negative shape": lambda h: first(h).update(shape=[-1, 4]),
        "huge shape": lambda h: first(h).update(shape=[2**40, 2**40]),
        "overlap": lambda h: first(h).update(data_offsets=[0, 8]),
        "backwards": lambda h: first(h).update(data_offsets=[80, 8]),
        "no tensors": lambda h: {"__metadata__": {"format": "pt"}},
        "another name": lambda h: {k + ".x" if k != "__metadata__" else k: v for k, v in h.items()},
        "another shape": lambda h: first(h).update(shape=[*first(h)["shape"][::-1]]),
        "another framework": lambda h: h.update(__metadata__={"format": "tf"}),
        "metadata no text": lambda h: h.update(__metadata__={"format": 3}),
        "deep": lambda h: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    }.items():
        yield f"header: {name}", edit_bytes(_header(change))
    yield (
        "NaN weights",
        edit_bytes(lambda c: c[:-400] + struct.pack("<f", float("nan")) * 100),
    )

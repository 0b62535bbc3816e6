"""A checksum of a backbone's folder, computed without loading the weights. No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from gapinit.artifacts.artifacts import digest, read_json
from gapinit.artifacts.digests import require_folder_unaltered
from gapinit.backbones.source import read_source
from gapinit.errors import GapinitError

READ_WHOLE = 1 << 28
"""Every byte of files up to this size (256 MiB) is read."""
TENSOR_WINDOW = 1 << 16
"""Of larger files, this many bytes at the beginning and at the end of each tensor are read."""

MAX_HEADER = 100_000_000
"""The safetensors format's own limit."""


def backbone_digest(folder: Path) -> str:
    """Return a checksum of a backbone's configuration, dtype, template and weights.

    Of a file above `READ_WHOLE` only the header, the size and both ends of every tensor are read:
    training changes every entry, so many gigabytes are compared in a moment.
    """
    folder = Path(folder)
    require_folder_unaltered(folder)
    state = hashlib.sha256()
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise GapinitError(f"{folder}: no backbone here (expected config.json and *.safetensors)")
    config = read_json(folder / "config.json")
    state.update(json.dumps(config, sort_keys=True).encode())
    # Dtype and template change the states of the same weights.
    source = read_source(folder)
    if source.dtype is not None:
        state.update(source.dtype.encode())
    used = source.prompts.model_dump(exclude_none=True)
    if used:
        state.update(json.dumps(used, sort_keys=True).encode())
    for path in weights:
        size = path.stat().st_size
        state.update(f"{path.name} {size}".encode())
        with open(path, "rb") as handle:
            if size <= READ_WHOLE:
                state.update(hashlib.file_digest(handle, "sha256").digest())
            else:
                _add_tensor_ends(handle, path, state)
    return digest(state.hexdigest())


def _add_tensor_ends(handle: BinaryIO, path: Path, state: hashlib._Hash) -> None:
    length = int.from_bytes(handle.read(8), "little")
    header = handle.read(min(length, MAX_HEADER))
    try:
        entries = json.loads(header)
        places = sorted(
            tuple(entry["data_offsets"]) for name, entry in entries.items() if name[:2] != "__"
        )
    except (ValueError, TypeError, KeyError):
        raise GapinitError(f"{path}: not a safetensors file. Download it again.") from None
    state.update(header)
    for begin, end in places:
        window = min(TENSOR_WINDOW, end - begin)
        for start in (begin, end - window):
            handle.seek(8 + length + start)
            state.update(handle.read(window))

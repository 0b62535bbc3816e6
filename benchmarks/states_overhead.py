"""Extraction of states, compared with a bare forward pass over the same pairs.

The model is loaded before the measurement. Ours is the rest of the stage (hooks, pooling, checks,
the HDF5 file); the bare loop reads the images, embeds and decodes, and keeps and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.measure import Result, Spread, Target, alternate, read_rate, seconds
from benchmarks.scaled import SCALE, write_world
from gapinit.backbones import load_backbone
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest
from gapinit.states import states

PAIRS, BATCH, TURNS = 32, 16, 5


def measure(world: Path, device: str, full: bool) -> Result:
    """Alternate both sides."""
    manifest = world / "data" / "manifest.json"
    model = load_backbone(world / "backbone", device)
    images = read_manifest(manifest).captions("train")
    pairs = states.calibration_pairs(images, PAIRS, 0, "images")
    output = world / "states.h5"

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, PAIRS, BATCH):
            block = pairs[start : start + BATCH]
            seen = model.look([load_image(image.path) for image, _ in block])
            encoded = model.encode_captions([caption for _, caption in block], 32)
            model.decode(model.embed(seen, [ids for ids, _ in encoded]))
        if device != "cpu":
            torch.cuda.synchronize()

    def extract() -> None:
        states.extract_states(
            world / "backbone", manifest, output, pairs=PAIRS, seed=0, batch_size=BATCH
        )

    # Loading the weights and computing their fingerprint is start-up, not overhead.
    with (
        patch.object(states, "load_backbone", lambda *_: model),
        patch.object(states, "backbone_digest", lambda _: "measured"),
    ):
        own, plain = alternate(lambda: seconds(extract), lambda: seconds(bare), TURNS)
    overhead = Spread([ours / theirs for ours, theirs in zip(own, plain, strict=True)])
    return Result(
        "states_overhead",
        [
            Target(
                "states extraction: time over the bare forward pass",
                "bare loop, nothing written",
                overhead,
                "at most",
                1.1,
                scale="BLIP-2 OPT-2.7B" if full else f"BLIP-2 OPT-2.7B, widths / {SCALE}",
            )
        ],
        {
            "seconds, extraction": Spread(own),
            "seconds, bare loop": Spread(plain),
            "reading the file, bytes a second": read_rate(output),
        },
        {"pairs": PAIRS, "batch": BATCH, "turns": TURNS, "device": device},
    )


def main() -> None:
    """Run the comparison on the scaled shape, or at full size on a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda takes the full size")
    device: str = parser.parse_args().device
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), PAIRS, device != "cpu")
        measure(Path(folder), device, device != "cpu").write()


if __name__ == "__main__":
    main()

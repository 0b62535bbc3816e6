"""Start-up of each command: CPU seconds, memory and imported large packages.

A new interpreter imports the modules of a command, several times, all commands in turn; the result
has the CPU times and the peak memory. A package counts as imported if it is in `sys.modules` at the
end. `--help` is the whole command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.measure import Result, Spread

COMMANDS = {
    "(bare interpreter)": "",
    "--help": "gapinit.cli",
    "snakemake (plan)": "gapinit.workflow.plan gapinit.workflow.shared_jobs",
    "data prepare": "gapinit.data.dataset",
    "backbone": "gapinit.backbones gapinit.backbones.mini_blip2",
    "states": "gapinit.states.states gapinit.backbones.blip2",
    "gap": "gapinit.gap.gap_file",
    "layers": "gapinit.gap.layers",
    "trunk": "gapinit.train.trunk.write gapinit.backbones.blip2",
    "train": "gapinit.train.train gapinit.backbones.blip2",
    "features": "gapinit.evaluate.predict gapinit.backbones.blip2",
    "predict": "gapinit.evaluate.predict gapinit.backbones.blip2 gapinit.adapters.files",
    "score captions": "gapinit.evaluate.metrics.captions pycocoevalcap.bleu.bleu_scorer",
    "score vqa": "gapinit.evaluate.metrics.vqa",
    "score pope": "gapinit.evaluate.metrics.pope",
    "table": "gapinit.tables.table",
    "runs": "gapinit.tables.table",
    "claims": "gapinit.tables.claims",
    "figure figure1a": "gapinit.figures.bars",
    "figure figure5": "gapinit.figures.figure5",
    "report": "gapinit.report.page",
    "(import torch)": "torch",
    "(import transformers.modeling_utils)": "transformers.modeling_utils",
    "(import peft)": "peft",
}
"""The module of each command's function, and the modules that the function imports."""

PACKAGES = (
    *("numpy", "pydantic", "h5py", "PIL", "pandas", "matplotlib", "scipy", "sklearn"),
    *("torch", "torch._dynamo", "torch.distributed.tensor", "sympy"),
    *("transformers", "accelerate", "peft", "requests"),
)
PROGRAM = """
import importlib, resource, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
used = resource.getrusage(resource.RUSAGE_SELF)
found = [name for name in sys.argv[2].split() if name in sys.modules]
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, ",".join(found) or "-")
"""


def measure(modules: str) -> tuple[float, float, list[str]]:
    """Import modules in a fresh interpreter: CPU seconds, MiB at the peak, packages."""
    command = [sys.executable, "-c", PROGRAM, modules, " ".join(PACKAGES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    seconds, memory, found = done.stdout.split()
    return float(seconds), float(memory), [] if found == "-" else found.split(",")


def main() -> None:
    """Measure, print and write `results/startup.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats):
        for name, modules in COMMANDS.items():
            runs[name].append(measure(modules))
    measured: dict[str, Spread | float | int | str] = {}
    for name, found in runs.items():
        packages = ", ".join(found[0][2]) or "none of those"
        measured[f"{name}, CPU s"] = Spread([seconds for seconds, _, _ in found])
        measured[f"{name}, MiB at the peak"] = max(memory for _, memory, _ in found)
        measured[f"{name}, packages"] = packages
    Result("startup", [], measured, {"packages looked for": list(PACKAGES)}).write()


if __name__ == "__main__":
    main()

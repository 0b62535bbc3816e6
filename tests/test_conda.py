"""`snakemake --use-conda`: rules import from the conda environment and from nowhere else.

With a conda on PATH it is that conda; without one, a double of the calls that Snakemake makes
(`conda_double.py`), and the test's name says so.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import sysconfig
from pathlib import Path

import pytest

from .conda_double import install
from .workflow_calls import ROOT, TEST, snakemake

WITNESS = """\
import atexit, json, os, sys

def record():
    shell = open(f"/proc/{os.getppid()}/cmdline", "rb").read().decode().split("\\0")
    modules = {
        name: sys.modules[name].__file__
        for name in ("numpy", "torch", "yaml", "gapinit")
        if name in sys.modules
    }
    with open(os.environ["WITNESS"], "a") as file:
        file.write(json.dumps({
            "arguments": sys.argv, "prefix": sys.prefix, "path": sys.path, "modules": modules,
            "shell": " ".join(shell),
        }) + "\\n")

atexit.register(record)
"""
"""A sitecustomize.py: every Python of the environment says at its end what it was."""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["conda on PATH", "DOUBLE of conda's five calls"])
def test_rules_import_from_the_conda_environment(which: str, tmp_path: Path) -> None:
    if which == "conda on PATH":
        if shutil.which("conda") is None:
            pytest.skip("no conda on PATH: only a DOUBLE of the five calls to conda was tested")
        path = os.environ["PATH"]
    else:
        path = f"{install(tmp_path / 'double-of-conda')}:{os.environ['PATH']}"
    folder = tmp_path / "a workflow"
    folder.mkdir()
    # Bash gives way to the last command of a line unless it has a trap; here it is to be seen.
    (tmp_path / "trap.sh").write_text("trap : EXIT\n")
    environment = {
        "PATH": path,
        "BASH_ENV": str(tmp_path / "trap.sh"),
        "WITNESS": str(folder / "witness"),
    }
    targets = [
        "results/1_data/scenes-test/manifest.json",
        "results/1_backbones/mini-blip2-test",
        "results/test/configuration.json",
    ]
    conda = (*TEST, "--use-conda")
    snakemake(folder, *conda, "--conda-create-envs-only", "--", *targets, **environment)
    (prefix,) = [path.parent for path in folder.glob(".snakemake/conda/*/bin")]
    packages = next(prefix.glob("lib/python3*/site-packages"))
    (packages / "sitecustomize.py").write_text(WITNESS)
    snakemake(folder, *conda, "--", *targets, **environment)

    records = [json.loads(line) for line in (folder / "witness").read_text().splitlines()]
    commands = {record["arguments"][0] + " " + " ".join(record["arguments"]) for record in records}
    for command in ("data prepare", "backbone --settings", "configuration --content"):
        assert any(command in one for one in commands), command
    imported = set()
    hosts = {sysconfig.get_path("purelib"), site.getusersitepackages()}
    for record in records:
        assert Path(record["prefix"]) == prefix.resolve() or Path(record["prefix"]) == prefix
        assert not hosts & set(record["path"]), "the host's packages are on the rule's path"
        for name, file in record["modules"].items():
            imported.add(name)
            if name == "gapinit":
                assert file == str(ROOT / "gapinit/__init__.py")
            else:
                assert file.startswith(f"{packages}/"), file
        # Activated first; then the strict shell, which shell.prefix() would else have replaced.
        shell = record["shell"]
        parts = ("/bin/activate", "set -euo pipefail; export PYTHONPATH=", "python -m gapinit")
        order = [shell.index(part) for part in parts]
        assert order == sorted(order), shell
    assert imported == {"numpy", "torch", "yaml", "gapinit"}

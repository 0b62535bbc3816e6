"""A double of conda: the five calls that Snakemake 9 makes of it, and the script that activates.

Not conda: it resolves nothing and reaches no channel. An environment of it is a virtual one that
holds exactly the distributions of the file's pip section, each linked from the test's own
environment, where it must be installed at the very version that the file asks for. So what a rule
imports comes from the environment, and what the file leaves out cannot be imported there.

The command line (`python conda_double.py BASE conda-arguments...`) is what the test puts on PATH.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from argparse import ArgumentParser
from importlib.metadata import distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ACTIVATE = """\
# The double's `source <base>/bin/activate <prefix>`.
export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"
"""


def install(base: Path) -> Path:
    """Write the double below `base` and return the folder that PATH has to begin with."""
    programs = base / "bin"
    programs.mkdir(parents=True)
    conda = programs / "conda"
    conda.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{__file__}' '{base}' \"$@\"\n")
    conda.chmod(0o755)
    (programs / "activate").write_text(ACTIVATE)
    return programs


def create(file: Path, prefix: Path) -> None:
    """Make an environment of what stands in a file's pip section."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert names == [f"python={sys.version_info[0]}.{sys.version_info[1]}", "pip"], names
    (pins,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    for pin in pins:
        requirement = Requirement(pin)
        found = distribution(requirement.name)
        # As pip does, this takes a build of one's own (2.13.0+cpu) for the version.
        assert requirement.specifier.contains(found.version), f"{pin}: found {found.version}"
        assert found.files is not None
        for top in {path.parts[0] for path in found.files if path.parts[0] not in ("..", "/")}:
            if top == "__pycache__" or (target / top).exists():
                continue
            (target / top).symlink_to(Path(str(found.locate_file(top))).absolute())


def main(base: str, arguments: list[str]) -> None:
    """Answer a call as conda does."""
    if arguments == ["info", "--json"]:
        print(json.dumps({"conda_prefix": base, "platform": "linux-64"}))
    elif arguments == ["--version"]:
        print("conda 24.9.2")
    elif arguments == ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif arguments == ["clean", "-y", "--tarballs"]:
        pass
    elif arguments[:2] == ["env", "create"]:
        parser = ArgumentParser()
        parser.add_argument("--quiet", action="store_true")
        parser.add_argument("--no-default-packages", action="store_true")
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--prefix", type=Path, required=True)
        given = parser.parse_args(arguments[2:])
        create(given.file, given.prefix)
    else:
        sys.exit(f"the double of conda knows no call like: conda {' '.join(arguments)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

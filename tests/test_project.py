"""What holds for the project as a whole: agreeing pins and versions, clean files, make."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gapinit

# Written so that this file does not contain what it looks for.
FORBIDDEN = re.compile(
    r"(?<![\w.])/wor[k]/|/roo[t]/|/opt/pyp[i]|pypi\.org|pythonhosted\.org|registry\.npmjs\.org"
    r"|(?:conda\.)?anaconda\.org|--(?:extra-)?index-[u]rl|--find-[l]inks"
)


def pins(path: Path) -> dict[str, str]:
    """Return the exact versions that a requirements file asks for; anything inexact fails."""
    found = {}
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-r "):
            continue
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        assert [one.operator for one in specifiers] == ["=="], f"{path.name}: {line} is no pin"
        assert "+" not in specifiers[0].version, f"{path.name}: {line} names a local build"
        found[canonicalize_name(requirement.name)] = specifiers[0].version
    return found


def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_public_names_are_importable():
    for name in gapinit.__all__:
        assert getattr(gapinit, name) is not None


def test_conda_environments_have_the_pins_of_the_requirements(repository, tmp_path):
    environments = sorted((repository / "envs").glob("*.yaml"))
    assert environments
    wanted = pins(repository / "requirements.txt")
    for path in environments:
        dependencies = yaml.safe_load(path.read_text())["dependencies"]
        lists = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
        (tmp_path / path.name).write_text("\n".join(line for lines in lists for line in lines))
        assert pins(tmp_path / path.name) == wanted, path


def test_every_direct_dependency_is_pinned_at_a_version_it_admits(repository):
    runtime = pins(repository / "requirements.txt")
    everything = runtime | pins(repository / "requirements-dev.txt")
    extras = project(repository)["optional-dependencies"]
    for line in project(repository)["dependencies"] + extras["workflow"]:
        requirement = Requirement(line)
        assert runtime[canonicalize_name(requirement.name)] in requirement.specifier
    everything |= pins(repository / "requirements-cluster.txt")
    for line in extras["dev"] + extras["cluster"]:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != "gapinit":
            assert everything[canonicalize_name(requirement.name)] in requirement.specifier


def test_development_pins_add_to_the_runtime_pins_and_never_repeat_one(repository):
    runtime = pins(repository / "requirements.txt").keys()
    development = pins(repository / "requirements-dev.txt").keys()
    cluster = pins(repository / "requirements-cluster.txt").keys()
    assert not runtime & development and not cluster & (runtime | development)


def test_pins_bring_no_package_that_needs_another_pytorch(repository):
    # There is no CPU build of it that matches; transformers then fails at import time.
    assert "torchvision" not in pins(repository / "requirements.txt")
    assert not any(name.startswith("nvidia-") for name in pins(repository / "requirements.txt"))


def test_versions_agree(repository):
    version = project(repository)["version"]
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    newest = re.search(
        r"^## \[([^\]]+)\]", (repository / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert newest is not None and newest[1] == version
    assert gapinit.__version__ == version


def test_licences_agree(repository):
    assert project(repository)["license"] == "Apache-2.0"
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["license"] == "Apache-2.0"
    text = (repository / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def project_files(repository: Path) -> list[Path]:
    """Return the files that are tracked or about to be: all that Git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
    )
    if listed.returncode:
        pytest.skip("not a Git checkout")
    paths = [repository / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_machine_path_or_a_package_registry(repository):
    files = project_files(repository)
    assert repository / "Makefile" in files
    found = []
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), start=1):
            if FORBIDDEN.search(line):
                found.append(f"{path.relative_to(repository)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_results_are_not_tracked(repository):
    inside = [path for path in project_files(repository) if repository / "results" in path.parents]
    kept = repository / "results" / "reference"
    assert {path.name for path in inside if kept not in path.parents} <= {".gitkeep"}


def test_make_help_lists_every_target(repository):
    makefile = (repository / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)[0].split()
    done = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  make (\S+) +\S", done.stdout, flags=re.MULTILINE) == targets


def test_make_needs_no_second_installation(repository, tmp_path):
    """With both stamps newer than what they depend on, nothing is installed again."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    (tmp_path / ".venv").mkdir()

    def plan() -> str:
        done = subprocess.run(
            ["make", "--dry-run", "lint"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "pip" in plan()
    for stamp in (".installed-runtime", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    assert "pip" not in plan()
    newer = (tmp_path / ".venv" / ".installed-dev").stat().st_mtime + 10
    os.utime(tmp_path / "requirements.txt", (newer, newer))
    assert "--requirement requirements.txt" in plan()

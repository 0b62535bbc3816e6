"""What other workflows take from this one: cached results, its rules as a module, its report."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
CONFIGURATION = ("--configfile", str(ROOT / "config/test.yaml"))
STATES = "results/test/2_states/mini-blip2-test/scenes-test.h5"
TRUNK = "results/test/4_train/trunk/mini-blip2-test/scenes-test/naive.h5"


def snakemake(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", "2", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-5000:]
    return output


def here(folder: Path, *arguments: str, **environment: str) -> str:
    """Run this workflow in a folder."""
    options = ("--snakefile", str(ROOT / "Snakefile"), *CONFIGURATION)
    return snakemake(folder, *options, *arguments, **environment)


def made(output: str) -> list[str]:
    """Return which outputs were made and then kept in the cache, by what Snakemake says."""
    return sorted(re.findall(r"^Moving output file (.+) to cache", output, flags=re.MULTILINE))


@pytest.mark.slow
def test_backbone_states_and_trunk_are_shared_between_workflows(tmp_path: Path) -> None:
    cache = {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    output = here(first, "--cache", "--", STATES, TRUNK, **cache)
    assert made(output) == ["results/1_backbones/mini-blip2-test", STATES, TRUNK]
    output = here(second, "--cache", "--", STATES, TRUNK, **cache)
    assert made(output) == [], "the second workflow made them again"
    for path in (STATES, TRUNK):
        assert (second / path).read_bytes() == (first / path).read_bytes()
    weights = "results/1_backbones/mini-blip2-test/model.safetensors"
    assert (second / weights).resolve().is_relative_to(tmp_path / "cache")
    # Another draw of calibration pairs is other states, of the same backbone.
    other = ("--config", "calibration={'seed': 5}")
    output = here(second, "--cache", *other, "--", STATES, **cache)
    assert made(output) == [STATES]
    assert (second / STATES).read_bytes() != (first / STATES).read_bytes()


def test_what_wildcards_say_stands_in_params_up_to_the_cached_rules() -> None:
    """The cache's key holds the shell text with its wildcards unfilled.

    A wildcard there would make two different jobs one.
    """
    text = "".join((ROOT / "rules" / name).read_text() for name in
                   ("1_data.smk", "2_states.smk", "3_gap.smk", "4_train.smk"))  # fmt: skip
    parts = re.split(r"^(?:rule |for )", text, flags=re.M)[1:]
    rules = {part.partition(":")[0]: part for part in parts}
    cached = {name for name, part in rules.items() if 'cache: "omit-software"' in part}
    assert cached == {"backbone", "states", "trunk"}
    before = cached | {"retrieve", "unpack", "dataset", "pretraining_data", "gap", "layers"}
    for name in before:
        command = rules[name].partition("    shell:")[2]
        assert "python -m gapinit" in command
        assert "{wildcards" not in command, f"rule {name}"


def test_another_workflow_uses_the_rules_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(
        f"""
configfile: "{ROOT}/config/default.yaml"
configfile: "{ROOT}/config/test.yaml"

module gapinit:
    snakefile: "{ROOT}/Snakefile"
    config: {{**config, "results": "from gapinit"}}

use rule * from gapinit as gapinit_*

rule counts:
    default_target: True
    input:
        manifest="from gapinit/1_data/scenes-test/manifest.json",
        configuration=rules.gapinit_configuration.output,
    output:
        "counts.txt",
    shell:
        "grep -c image_id {{input.manifest:q}} > {{output}}"
""",
        encoding="utf-8",
    )
    output = snakemake(tmp_path)
    assert "rule gapinit_dataset" in output or "Dataset scenes-test" in output
    assert int((tmp_path / "counts.txt").read_text()) > 0
    assert (tmp_path / "from gapinit/test/configuration.json").is_file()


def test_snakemakes_own_report(tmp_path: Path) -> None:
    figure = "results/test/7_figures/figure5.pdf"
    here(tmp_path, "--", figure)
    here(tmp_path, "--report", "report.zip", "--", figure)
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = archive.namelist()
        assert any(name.endswith("figure5.pdf") for name in names)
        (page,) = [name for name in names if name.endswith("report.html")]
        assert "figure5" in archive.read(page).decode("utf-8")


def test_lint_has_nothing_to_say() -> None:
    output = snakemake(ROOT, "--lint")
    assert "your workflow is in a good condition" in output


def test_a_container_file_holds_the_environment(tmp_path: Path) -> None:
    """With the DOUBLE of conda: Snakemake only asks it where it lies."""
    place = Path(__file__).with_name("conda_double.py")
    spec = importlib.util.spec_from_file_location("conda_double", place)
    assert spec is not None and spec.loader is not None
    double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(double)
    path = f"{double.install(tmp_path / 'double')}:{os.environ['PATH']}"
    output = here(tmp_path, "--containerize", PATH=path)
    assert "FROM " in output
    assert "envs/gapinit.yaml" in output
    assert re.search(r"^RUN .*env create --prefix /conda-envs/", output, flags=re.M)

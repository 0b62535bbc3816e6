"""What other workflows take from this one: cached results, its rules as a module, its conda."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .conda_double import install
from .workflow_calls import ROOT, TEST, snakemake

STATES = "results/test/2_states/mini-blip2-test/scenes-test.h5"


def made(output: str) -> list[str]:
    """Return which outputs were made and then kept in the cache, by what Snakemake says."""
    return sorted(re.findall(r"^Moving output file (.+) to cache", output, flags=re.MULTILINE))


@pytest.mark.slow
def test_backbone_and_states_are_shared_between_workflows(tmp_path: Path) -> None:
    cache = {"SNAKEMAKE_OUTPUT_CACHE": str(tmp_path / "cache")}
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (tmp_path / "cache", first, second):
        folder.mkdir()
    output = snakemake(first, *TEST, "--cache", "--", STATES, **cache)
    assert made(output) == ["results/1_backbones/mini-blip2-test", STATES]
    output = snakemake(second, *TEST, "--cache", "--", STATES, **cache)
    assert made(output) == [], "the second workflow made them again"
    assert (second / STATES).read_bytes() == (first / STATES).read_bytes()
    weights = "results/1_backbones/mini-blip2-test/model.safetensors"
    assert (second / weights).resolve().is_relative_to(tmp_path / "cache")


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
    output = snakemake(tmp_path, snakefile=tmp_path / "Snakefile")
    assert "rule gapinit_dataset" in output or "Dataset scenes-test" in output
    assert int((tmp_path / "counts.txt").read_text()) > 0
    assert (tmp_path / "from gapinit/test/configuration.json").is_file()


def test_a_container_file_holds_the_environment(tmp_path: Path) -> None:
    """With the DOUBLE of conda: Snakemake only asks it where it lies."""
    path = f"{install(tmp_path / 'double')}:{os.environ['PATH']}"
    output = snakemake(tmp_path, *TEST, "--containerize", PATH=path)
    assert "FROM " in output
    assert "envs/gapinit.yaml" in output
    assert re.search(r"^RUN .*env create --prefix /conda-envs/", output, flags=re.M)

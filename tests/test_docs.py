"""The pages in docs/: links lead somewhere, commands exist, examples are accepted as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gapinit.cli import app
from gapinit.config.configuration import load_config
from gapinit.config.experiments import load_experiment, table_rows
from gapinit.config.yaml_files import read_yaml

PAGES = ("how-it-works", "your-model", "full-scale", "report", "adding", "faq", "backbones")
THE_READERS_OWN = {"gapinit/backbones/idefics3.py"}
"""What a page tells its reader to make."""


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / "docs" / f"{request.param}.md"


def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(\s*([^)]+?)\s*\)", text):
        if link.startswith("https://"):
            assert re.fullmatch(r"https://[\w./-]+", link), link
        else:
            assert (page.parent / link.split("#")[0]).exists(), link


def test_commands_options_and_files_exist(page: Path, repository: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = get_command(app)
    for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            found = re.match(r"(?:\.venv/bin/)?gapinit ([a-z]+)", line)
            if found:
                assert found[1] in commands.commands, line  # type: ignore[attr-defined]
            for configuration in re.findall(r"--configfile (\S+)", line):
                assert (repository / configuration).is_file(), line
    named = re.findall(r"`((?:gapinit|config|rules|workflow|docs)/[\w./-]+)`", text)
    for name in named:
        if name.rstrip("/") not in THE_READERS_OWN:
            assert (repository / name).exists(), name


def test_the_example_of_a_table_is_a_table(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "adding.md").read_text(encoding="utf-8")
    row, table = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(table, encoding="utf-8")
    folder = repository / "config"
    config = load_config(read_yaml(folder / "default.yaml"), folder, "test")
    rows = table_rows(load_experiment(path), config, "mine.yaml")
    assert [r.id for r in rows] == ["gap-init", "random-b", "lora", "lora-rank8"]
    path.write_text(table.replace("claims:", row + "claims:"), encoding="utf-8")
    rows = table_rows(load_experiment(path), config, "mine.yaml")
    assert [r.id for r in rows if r.id.startswith("noise")] == ["noise-0.2", "noise-0.6", "noise-1"]

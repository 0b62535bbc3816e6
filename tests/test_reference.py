"""The reference result: whole, small, told when it is old, and README made from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gapinit.artifacts.artifacts import read_json, write_json
from gapinit.config.configuration import Config
from gapinit.config.versions import VERSIONS
from gapinit.config.yaml_files import read_yaml
from gapinit.errors import GapinitError
from gapinit.report.readme import BEGIN, END, headline, updated, write_readme
from gapinit.report.reference import LARGEST, make_reference, outdated
from gapinit.tables.records import read_table
from gapinit.workflow.plan import make_plan

from .conftest import Once
from .report_tree import LABELS, build


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Path:
    """Return a checkout whose files a test may change."""
    for folder in ("config", "docs"):
        shutil.copytree(repository / folder, tmp_path / "project" / folder)
    return tmp_path / "project"


@pytest.fixture(scope="session")
def complete(once: Once, repository: Path) -> Path:
    """Return the results of a complete run and, in `kept`, what is kept of it."""

    def made(folder: Path) -> None:
        make_reference(_complete(folder / "results/scenes"), folder / "kept", repository)

    return once("a complete run", made)


@pytest.fixture
def results(complete: Path, tmp_path: Path) -> Path:
    """Return the results of a complete run, which a test may change."""
    shutil.copytree(complete / "results", tmp_path / "results", symlinks=True)
    return tmp_path / "results/scenes"


@pytest.fixture
def kept(complete: Path, tmp_path: Path) -> Path:
    """Return a reference result that a test may change."""
    return shutil.copytree(complete / "kept", tmp_path / "kept")


def _complete(folder: Path) -> Path:
    tree = build(folder)
    for stage in ("4_train", "5_evaluate"):
        (folder / stage).rename(folder / "moving")
        (folder / stage).mkdir()
        (folder / "moving").rename(folder / stage / "runs")
    (folder.parent / "1_data").symlink_to("scenes/1_data")
    config = tree.config.model_dump(mode="json", by_alias=True)
    write_json(folder / "configuration.json", config | {"figures": ["figure1a", "figure2"]})
    drawn = [
        f"7_figures/figure{n}.{suffix}" for n in ("1a", "2") for suffix in ("png", "pdf", "csv")
    ]
    for name in ("6_tables/table2.md", "6_tables/table2.tex", "claims.md", "report.html", *drawn):
        (folder / name).write_text(f"{name}\n", encoding="utf-8")
    return folder


def test_a_complete_run_is_kept_with_a_report_that_stands_alone(
    results: Path, project: Path, tmp_path: Path
) -> None:
    output = tmp_path / "kept" / "reference"
    make_reference(results, output, project)
    record = read_json(output / "reference.json")
    files = {
        path.relative_to(output).as_posix() for path in output.rglob("[!.]*") if path.is_file()
    }
    assert files - {"reference.json"} == set(record["files"])
    assert {"6_tables/table2.tex", "7_figures/figure1a.svg", "claims.csv", "citation.bib"} <= files
    assert (output / "6_tables/table2.csv").read_bytes() == (
        results / "6_tables/table2.csv"
    ).read_bytes()
    page = (output / "report.html").read_text(encoding="utf-8")
    # Logs and adapters are not kept, so nothing leads to them.
    assert page.count("<article") == 40 and 'href="4_train' not in page and 'href="logs' not in page
    assert sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) < LARGEST
    # Made again, it is replaced as a whole.
    (output / "left-over").write_text("old")
    make_reference(results, output, project)
    assert not (output / "left-over").exists()


@pytest.mark.parametrize(
    "name", ["6_tables/table2.tex", "7_figures/figure2.png", "claims.csv", "report.html"]
)
def test_an_incomplete_run_is_refused_and_nothing_is_replaced(
    results: Path, project: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "reference"
    output.mkdir()
    (output / "before").write_text("kept")
    (results / name).unlink()
    with pytest.raises(GapinitError, match=rf"not a complete run, there is no .*{name}"):
        make_reference(results, output, project)
    assert [path.name for path in output.iterdir()] == ["before"]


def test_one_that_is_too_large_is_refused(results: Path, project: Path, tmp_path: Path) -> None:
    (results / "7_figures" / "figure2.png").write_bytes(b"x" * LARGEST)
    message = r"would take \d+\.\d MB, expected at most 8; the largest file is 7_fig.*/figure2.png"
    with pytest.raises(GapinitError, match=message):
        make_reference(results, tmp_path / "reference", project)
    assert not (tmp_path / "reference").exists()


CHANGES = {
    "project/config/experiments/table2.yaml": ("title:", "title: ", "experiment 'table2': changed"),
    "project/config/published/gap-init.csv": (
        "98.08",
        "98.80",
        "published numbers 'gap-init': changed",
    ),
    "kept/6_tables/table2.csv": ("171", "185", "6_tables/table2.csv: missing or changed by hand"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_result_older_than_the_code_is_told(
    kept: Path, project: Path, tmp_path: Path, name: str
) -> None:
    config = Config.model_validate(read_json(kept / "configuration.json"))
    assert outdated(kept, config, project) == []
    old, new, message = CHANGES[name]
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    assert outdated(kept, config, project) == [message]


def test_another_stage_version_is_told(
    complete: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(read_json(complete / "kept/configuration.json"))
    before = VERSIONS["train"]
    monkeypatch.setitem(VERSIONS, "train", 99)
    reasons = outdated(complete / "kept", config, repository)
    assert reasons == [f"stage 'train': version {before} then, 99 now"]


def test_another_configuration_is_told(complete: Path, repository: Path) -> None:
    content = read_json(complete / "kept/configuration.json") | {"seeds": [1]}
    reasons = outdated(complete / "kept", Config.model_validate(content), repository)
    assert reasons == ["the configuration: changed"]


@pytest.fixture
def reference(repository: Path) -> Path:
    """Return the reference result of the repository."""
    folder = repository / "results" / "reference"
    if not (folder / "reference.json").is_file():
        pytest.skip("no results/reference here yet: `make all reference` makes it")
    return folder


def test_the_repositorys_reference_is_of_this_code(reference: Path, repository: Path) -> None:
    """Where it fails: `make all reference readme`, and commit results/reference and README."""
    default = repository / "config" / "default.yaml"
    config = make_plan(read_yaml(default), repository / "config", [default]).config
    reasons = outdated(reference, config, repository)
    assert reasons == [], "results/reference is older than the code: make all reference readme"


def test_the_repositorys_readme_is_what_make_readme_writes(
    reference: Path, repository: Path
) -> None:
    readme = repository / "README.md"
    assert readme.read_text(encoding="utf-8") == updated(readme, reference), "run: make readme"


def test_the_headline_has_every_row_with_its_numbers(complete: Path) -> None:
    text = headline(complete / "kept", "results/reference")
    for label in LABELS.values():
        assert f"| {label} |" in text
    assert "| Gap-Init, rank 1, naive layers | 140.59 |" in text
    assert "hold: 1, do not hold: 1, undecided: 0" in text
    assert "(results/reference/7_figures/figure1a.png)" in text
    assert "There are 3 seeds" in text and "Compare signs and order" in text
    for cell in read_table(complete / "kept/6_tables/table2.csv"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {cell.label} |"))
        assert f" {cell.measured:.2f}" in line, cell
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(LABELS) and len({line.count("|") for line in lines}) == 1


def test_readme_changes_between_its_markers_only(kept: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter `|`\n", encoding="utf-8")
    write_readme(readme, kept)
    first = readme.read_text(encoding="utf-8")
    assert first.startswith(f"# Before\n\n{BEGIN}\n\n**Table 2 of the paper")
    assert first.endswith(f"{END}\n\nAfter `|`\n") and "\nold\n" not in first
    assert "(kept/claims.md)" in first
    write_readme(readme, kept)
    assert readme.read_text(encoding="utf-8") == first == updated(readme, kept)


@pytest.mark.parametrize("text", ["# No marker\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_readme_without_markers_is_told_which_lines_to_add(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(GapinitError) as error:
        write_readme(readme, tmp_path)
    assert BEGIN in str(error.value) and END in str(error.value)
    assert readme.read_text(encoding="utf-8") == text

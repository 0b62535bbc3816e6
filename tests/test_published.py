"""Published numbers: as the papers print them, and how contradictions are told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gapinit.errors import GapinitError
from gapinit.published import (
    COLUMNS,
    PublishedNumber,
    elsewhere,
    find,
    published_files,
    read_published,
)

NOT_METRICS = {"Method", "Rk/Config", "Rank", r"$ \mathcal{D}_{\text{cal}} $"}
NOT_METRICS |= {"Calibration Source", r"Noise Level ( $\epsilon$ )", r"Noise Level ($\epsilon$)"}
METRICS = {
    "CIDEr": "CIDEr",
    "BLEU-4": "Bleu_4",
    "METEOR": "METEOR",
    r"$\Delta$ vs Baseline": "CIDEr_gain",
    "VQA2": "VQAv2_accuracy",
    "OKVQA": "OKVQA_accuracy",
    "POPE F1": "POPE_F1",
}


@pytest.fixture(scope="module")
def tables(repository: Path) -> list[PublishedNumber]:
    return read_published(repository / "config" / "published" / "gap-init.csv")


@pytest.fixture(scope="module")
def quoted(repository: Path) -> list[PublishedNumber]:
    return read_published(repository / "config" / "published" / "gap-init-text.csv")


@pytest.fixture(scope="module")
def papers(repository: Path) -> Path:
    folder = Path(os.environ.get("GAPINIT_PAPERS", repository.parent / "shared" / "papers"))
    if not (folder / "gap-init-paper.md").is_file():
        pytest.skip(f"no text of the paper in {folder}: set GAPINIT_PAPERS to its folder")
    return folder


def plain(text: str) -> str:
    """Strip the marks of emphasis and mathematics from a cell of the paper's text."""
    text = re.sub(r"</?(b|math)>", "", text).replace(r"\pm", "±").replace("$", "")
    return " ".join(text.split())


def printed_table(paper: str, place: str) -> list[tuple[str, str]]:
    """Return (metric, printed) of every numeric cell of a table in the paper's text, in order."""
    lines = paper.splitlines()
    caption = rf"\**{re.escape(place)}\.\**\s"
    start = next(i for i, line in enumerate(lines) if re.match(caption, line))
    start = next(i for i in range(start + 1, len(lines)) if "\t" in lines[i])
    header = [column.strip() for column in lines[start].split("\t")]
    for column in header:
        assert column in METRICS or column in NOT_METRICS, f"{place}: new column {column!r}"
    cells = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        for column, cell in zip(header, line.split("\t"), strict=False):
            if column in METRICS and re.search(r"\d", cell):
                cells.append((METRICS[column], plain(cell)))
    return cells


@pytest.mark.parametrize("place", [f"Table {n}" for n in range(2, 13)])
def test_the_file_holds_every_cell_of_the_papers_table_and_no_other(
    tables: list[PublishedNumber], papers: Path, place: str
) -> None:
    paper = (papers / "gap-init-paper.md").read_text(encoding="utf-8")
    ours = [(number.metric, number.printed) for number in tables if number.place == place]
    assert ours and ours == printed_table(paper, place)


def test_quoted_numbers_stand_where_the_file_says(
    quoted: list[PublishedNumber], papers: Path
) -> None:
    texts = {
        "Project page": (papers / "gap-init-project-page.txt").read_text(encoding="utf-8"),
        "Review notes": (papers / "gap-init-review-notes.md").read_text(encoding="utf-8"),
    }
    paper = (papers / "gap-init-paper.md").read_text(encoding="utf-8")
    sections = re.split(r"(?m)^#+ ", paper)
    for number in quoted:
        text = texts.get(number.place)
        if text is None:
            heading = re.compile(rf"{re.escape(number.place.split()[-1])}\.? ")
            text = next(part for part in sections if heading.match(part))
        pattern = rf"(?<![\d.]){re.escape(number.printed)}(?!\d)"
        assert re.search(pattern, text), number


def test_values_are_the_printed_numbers(
    tables: list[PublishedNumber], quoted: list[PublishedNumber]
) -> None:
    for number in [*tables, *quoted]:
        digits = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", number.printed)]
        if "±" in number.printed and len(digits) == 2:
            assert [number.value, number.std] == digits
        else:
            # A printed range stands as its middle.
            assert number.std is None
            middle = (digits[0] + digits[1]) / 2 if "-1" in number.printed else digits[0]
            assert number.value == middle, number


def test_known_contradictions_are_found(
    tables: list[PublishedNumber], quoted: list[PublishedNumber]
) -> None:
    numbers = [*tables, *quoted]
    here = find(tables, "Table 2", "lora-rank1", "CIDEr", "test")
    assert here is not None and here.value == 98.08
    note = elsewhere(numbers, here)
    assert "135.37 ± 7.10 (Table 7)" in note and "98.08" not in note
    gap_init = find(tables, "Table 2", "gap-init", "CIDEr", "test")
    assert gap_init is not None
    note = elsewhere(numbers, gap_init)
    for printed in ("140.57 ± 1.44 (Table 7", "142.05 (Table 9)", "140.56 (Table 10)", "113-114"):
        assert printed in note
    # Another dataset is another configuration: 79.60 on Flickr30k contradicts nothing.
    assert "79.60" not in note
    assert {n.value for n in quoted if n.metric == "hidden_size"} == {4096.0, 2560.0}


def test_numbers_that_nothing_contradicts_have_no_note(tables: list[PublishedNumber]) -> None:
    pissa = find(tables, "Table 2", "pissa", "CIDEr", "test")
    assert pissa is not None and elsewhere(tables, pissa) == ""


def test_a_metric_that_a_row_lacks_is_none_and_an_unknown_row_an_error(
    tables: list[PublishedNumber],
) -> None:
    assert find(tables, "Table 2", "pissa", "METEOR", "mine.yaml") is None
    with pytest.raises(GapinitError, match=r"mine.yaml: .* no row 'piza' at 'Table 2'.*pissa"):
        find(tables, "Table 2", "piza", "CIDEr", "mine.yaml")


HEADER = ",".join(COLUMNS)
GOOD = "Table 1,a,CIDEr,1.5,,1.5,c"
BAD = {
    "columns": ("place,row\n", "expected the columns place, row, metric"),
    "empty file": ("", "found none"),
    "number": (f"{HEADER}\nTable 1,a,CIDEr,many,,many,c\n", "line 2: column 'value'"),
    "not finite": (f"{HEADER}\nTable 1,a,CIDEr,nan,,nan,c\n", "expected a number, found 'nan'"),
    "std": (f"{HEADER}\nTable 1,a,CIDEr,1,x,1,c\n", "column 'std'"),
    "empty": (f"{HEADER}\n{GOOD}\nTable 1,,CIDEr,1,,1,c\n", "line 3: column 'row' is empty"),
    "short line": (f"{HEADER}\nTable 1,a,CIDEr\n", "column 'value' is empty"),
    "twice": (f"{HEADER}\n{GOOD}\n{GOOD}\n", "line 3: a second number for Table 1, a, CIDEr"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_an_error_that_names_file_and_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "paper.csv"
    path.write_text(content)
    with pytest.raises(GapinitError) as error:
        read_published(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_the_text_file_is_optional_and_the_tables_are_not(tmp_path: Path) -> None:
    files = published_files(tmp_path, "mine")
    assert files == [tmp_path / "mine.csv"]
    with pytest.raises(GapinitError, match="no such file"):
        read_published(files[0])
    (tmp_path / "mine-text.csv").write_text(f"{HEADER}\n{GOOD}\n")
    assert published_files(tmp_path, "mine")[1] == tmp_path / "mine-text.csv"

"""Published numbers: as the papers print them, and how contradictions are told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gapinit.errors import GapinitError
from gapinit.tables.published import (
    PublishedNumber,
    contradictions,
    elsewhere,
    find,
    published_files,
    read_published,
    read_settings,
)

IDENTITY = {"Method", "Rk/Config", "Rank", r"$ \mathcal{D}_{\text{cal}} $"}
IDENTITY |= {"Calibration Source", r"Noise Level ( $\epsilon$ )"}
METRICS = {
    "CIDEr": "CIDEr",
    "BLEU-4": "Bleu_4",
    "METEOR": "METEOR",
    r"$\Delta$ vs Baseline": "CIDEr_gain",
    "VQA2": "VQAv2_accuracy",
    "OKVQA": "OKVQA_accuracy",
    "POPE F1": "POPE_F1",
}
OF_SETTINGS = ("Table 1", "Table 13", "Table 14")
MARKS = {r"\alpha": "α", r"\times": "×", "^{-4}": "⁻⁴", r"\leftarrow": "←", r"^{(\ell)}": "^(ℓ)"}
MARKS |= {r"\ g": "‖g", r"\ _2": "‖₂", r"\pm": "±", "$": "", "**": ""}


@pytest.fixture(scope="module")
def tables(repository: Path) -> list[PublishedNumber]:
    return read_published(repository / "config" / "published" / "gap-init.csv")


@pytest.fixture(scope="module")
def quoted(repository: Path) -> list[PublishedNumber]:
    return read_published(repository / "config" / "published" / "gap-init-text.csv")


@pytest.fixture(scope="module")
def papers(repository: Path) -> Path:
    folder = Path(os.environ.get("SHARED", repository.parent / "shared")) / "papers"
    if not (folder / "gap-init-paper.md").is_file():
        pytest.skip(f"no text of the papers in {folder}: set SHARED to the folder above it")
    return folder


def plain(text: str) -> str:
    """Strip the marks of emphasis and mathematics from a cell of the paper's text."""
    text = re.sub(r"</?(b|math)>", "", text)
    for mark, written in MARKS.items():
        text = text.replace(mark, written)
    return " ".join(text.split())


Cell = tuple[str, str, str]


def printed_tables(paper: str) -> dict[str, list[Cell]]:
    """Return (row, column, printed) of every cell of every table in the paper's text, in order.

    A table is a block of lines with tabs, its caption the nearest one above. Of a table of results
    the row is its first columns, under the heading of its group, and a cell is one with a digit.
    """
    found: dict[str, list[Cell]] = {}
    place, header, group = "", [], ""
    for line in paper.splitlines():
        caption = re.match(r"\**(Table \d+)\.\**\s", line)
        place = caption[1] if caption else place
        if "\t" not in line:
            header = header if line.strip() and not caption else []
            continue
        cells = line.split("\t")
        if not header:
            header, group = [column.strip() for column in cells], ""
            assert place not in found, f"{place}: a second table below one caption"
            found[place] = []
            continue
        if not any(cell.strip() for cell in cells[1:]):
            group = plain(cells[0])
            continue
        named = dict(zip(header, map(plain, cells), strict=True))
        if place in OF_SETTINGS:
            row, columns = plain(cells[0]), header[1:]
            found[place] += [(row, column, named[column]) for column in columns]
            continue
        for column in header:
            assert column in METRICS or column in IDENTITY, f"{place}: new column {column!r}"
        parts = [group, *(named[column] for column in header if column in IDENTITY)]
        row = " | ".join(part for part in parts if part)
        found[place] += [
            (row, METRICS[column], named[column])
            for column in header
            if column in METRICS and re.search(r"\d", named[column])
        ]
    return found


def test_the_files_hold_every_cell_of_every_table_and_no_other(
    tables: list[PublishedNumber], papers: Path, repository: Path
) -> None:
    """Both ways: the row as printed, the metric, the number as printed, in the paper's order."""
    printed = printed_tables((papers / "gap-init-paper.md").read_text(encoding="utf-8"))
    assert list(printed) and set(printed) == {f"Table {n}" for n in range(1, 15)}
    ours: dict[str, list[Cell]] = {}
    for number in tables:
        cell = (number.printed_row, number.metric, number.printed)
        ours.setdefault(number.place, []).append(cell)
    for setting in read_settings(repository / "config" / "published", "gap-init"):
        cell = (setting.setting, setting.column, setting.printed)
        ours.setdefault(setting.place, []).append(cell)
    assert ours == printed


def test_rows_of_ours_are_one_to_one_with_those_of_a_printed_table(
    tables: list[PublishedNumber],
) -> None:
    names = {(number.place, number.row) for number in tables}
    printed = {(number.place, number.printed_row) for number in tables}
    both = {(number.place, number.row, number.printed_row) for number in tables}
    assert len(names) == len(printed) == len(both)


def sections_of(text: str) -> dict[str, str]:
    """Return a paper's running text by section number, or by heading where it has no number."""
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^#+ ", text):
        heading, _, body = part.partition("\n")
        body = "\n".join(line for line in body.splitlines() if "\t" not in line)
        number = re.match(r"([A-Z0-9](?:\.\d+)?)\.? ", heading)
        name = number[1] if number else heading.strip()
        found[name] = found.get(name, "") + "\n" + body
    return found


def section(sections: dict[str, str], place: str) -> str:
    """Return the text of a section with that of its own subsections, or a figure's caption."""
    if place.startswith("Figure"):
        lines = "\n".join(sections.values()).splitlines()
        return next(line for line in lines if line.lstrip("*").startswith(f"{place}."))
    name = re.sub(r"^(Section|Appendix) ", "", place)
    parts = [text for key, text in sections.items() if key == name or key.startswith(f"{name}.")]
    if place == "Findings":
        parts = [sections[key] for key in ("Findings", "LLaMA 3.2 11B Vision", "Qwen 2.5 VL 7B")]
    assert parts, f"no section '{place}'"
    return "\n".join(parts)


def stands_in(printed: str, text: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(printed)}(?!\d)", text) is not None


def test_quoted_numbers_stand_where_the_file_says(
    quoted: list[PublishedNumber], papers: Path, repository: Path
) -> None:
    texts = {
        "Project page": (papers / "gap-init-project-page.txt").read_text(encoding="utf-8"),
        "Review notes": (papers / "gap-init-review-notes.md").read_text(encoding="utf-8"),
    }
    paper = sections_of((papers / "gap-init-paper.md").read_text(encoding="utf-8"))
    for number in quoted:
        text = texts.get(number.place) or section(paper, number.place)
        assert stands_in(number.printed, text), number
    study = sections_of((papers / "vlm-lora-dynamics.md").read_text(encoding="utf-8"))
    folder = repository / "config" / "published"
    for number in read_published(folder / "vlm-lora-dynamics.csv"):
        assert stands_in(number.printed, section(study, number.place)), number
    for setting in read_settings(folder, "vlm-lora-dynamics"):
        text = section(study, setting.place).replace("1 600", "1,600")
        assert stands_in(setting.printed, text), setting


NO_RESULT = re.compile(
    r"Section [\d.]+|(Fig\.|Figure|Table|Proposition|Theorem) [\d.]+|OPT-2\.7B|arXiv:[\d.]+|"
    r"(LLaMA|Llama) 3\.2|Qwen ?2\.5|20\d\d(-\d\d)*"
)
"""What has the form of a decimal number and is the name of something."""


@pytest.mark.parametrize("paper", ["gap-init-paper", "vlm-lora-dynamics"])
def test_every_decimal_number_of_the_running_text_is_in_the_files(
    papers: Path, repository: Path, paper: str
) -> None:
    name = paper.removesuffix("-paper")
    folder = repository / "config" / "published"
    numbers = [n for path in published_files(folder, name) for n in read_published(path)]
    held = " ".join(number.printed for number in numbers)
    held += " ".join(setting.printed for setting in read_settings(folder, name))
    seen = 0
    for heading, text in sections_of((papers / f"{paper}.md").read_text(encoding="utf-8")).items():
        if heading in ("References", "Reference", "") or heading.startswith("---"):
            continue
        for found in re.findall(r"(?<![\d.])\d+\.\d+(?![\d.]*\d)", NO_RESULT.sub("", text)):
            seen += 1
            # The levels of noise are rows of Table 11.
            assert stands_in(found, held) or found in ("0.0", "0.2", "0.6", "1.0"), (heading, found)
    assert seen > 15


def test_values_are_the_printed_numbers(
    tables: list[PublishedNumber], quoted: list[PublishedNumber]
) -> None:
    for number in [*tables, *quoted]:
        digits = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", number.printed)]
        if "±" in number.printed and len(digits) == 2:
            assert [number.value, number.std] == digits
        elif "^" in number.printed:
            assert number.value == digits[0] ** digits[1]
        else:
            # A printed range stands as its middle.
            assert number.std is None
            middle = (digits[0] + digits[1]) / 2 if "-1" in number.printed else digits[0]
            assert number.value == middle, number


def test_known_contradictions_are_found(
    tables: list[PublishedNumber], quoted: list[PublishedNumber]
) -> None:
    def note(row: str) -> str:
        number = find(tables, "Table 2", row, "CIDEr", "test")
        assert number is not None
        return elsewhere([*tables, *quoted], number)

    assert "135.37 ± 7.10 (Table 7)" in note("lora-rank1") and "98.08" not in note("lora-rank1")
    for printed in ("140.57 ± 1.44 (Table 7", "142.05 (Table 9)", "140.56 (Table 10)", "113-114"):
        assert printed in note("gap-init")
    # Another dataset is another configuration: 79.60 on Flickr30k contradicts nothing.
    assert "79.60" not in note("gap-init") and note("pissa") == ""
    found = {
        (it.configuration, it.metric): {number.value: number.place for number in it.numbers}
        for it in contradictions([*tables, *quoted])
    }
    sizes = found["blip2-opt-2.7b", "hidden_size"]
    assert set(sizes) == {4096, 2560} and sizes[2560] == "Appendix G.1"
    assert {98.08, 135.37} <= set(found["blip2-opt-2.7b/coco/lora-rank1", "CIDEr"])
    gap_init = set(found["blip2-opt-2.7b/coco/gap-init-rank1", "CIDEr"])
    assert {140.56, 140.57, 140.59, 141.84, 142.05, 113.5} == gap_init
    assert all(len(values) > 1 for values in found.values())


def test_a_metric_that_a_row_lacks_is_none_and_an_unknown_row_an_error(
    tables: list[PublishedNumber],
) -> None:
    assert find(tables, "Table 2", "pissa", "METEOR", "mine.yaml") is None
    with pytest.raises(GapinitError, match=r"mine.yaml: .* no row 'piza' at 'Table 2'.*pissa"):
        find(tables, "Table 2", "piza", "CIDEr", "mine.yaml")


HEADER = ",".join(PublishedNumber.model_fields)
GOOD = "Table 1,a,CIDEr,1.5,,1.5,,c"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["place,row"], "expected the columns place, row, metric"),
        ([], "not found: place, row"),
        ([HEADER, "Table 1,a,CIDEr,many,,many,,c"], "line 2, column 'value'"),
        ([HEADER, "Table 1,a,CIDEr,nan,,nan,,c"], "expected a finite number, found 'nan'"),
        ([HEADER, "Table 1,a,CIDEr,1,x,1,,c"], "column 'std'"),
        ([HEADER, GOOD, "T,,CIDEr,1,,1,,c"], "line 3, column 'row': expected text, found ''"),
        ([HEADER, "Table 1,a,CIDEr"], "column 'value': "),
        ([HEADER, GOOD, GOOD], "a second number for Table 1, a, CIDEr"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_file_and_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
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

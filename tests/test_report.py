"""The report: one page that is whole, inert, and says what the tables say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined
from PIL import Image

from gapinit.artifacts.artifacts import read_json, sha256
from gapinit.errors import GapinitError
from gapinit.report.page import make_report
from gapinit.report.prediction_browser import browse_predictions, thumbnail
from gapinit.report.run_lines import read_curve
from gapinit.report.sections import number_text, p_text
from gapinit.tables.records import read_runs, read_table
from gapinit.tables.scores import ScoreFolder
from gapinit.train.step_log import STEP_COLUMNS

from .conftest import Once
from .plain_json import forget_digests
from .report_tree import HOSTILE, LABELS, Tree, build, write_csv

VOID = {"meta", "img", "br", "link", "input", "line", "circle", "rect"}


class Page(HTMLParser):
    """What a browser would make of the page: elements, anchors, links, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.elements if attribute in attrs]

    @property
    def visible(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="session")
def html(tree: Tree) -> str:
    """Return the report of the small tree."""
    return (tree.root / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(html: str) -> Page:
    """Return that report as a browser would read it."""
    return Page(html)


@pytest.fixture(scope="session")
def visible(page: Page) -> str:
    """Return its visible text."""
    return page.visible


def test_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_links_resolve_and_nothing_leads_out(html: str, page: Page, tree: Tree) -> None:
    ids = set(page.values("id"))
    links = page.values("href")
    assert len(links) > 20
    files = [link for link in links if not link.startswith("#")]
    assert all(link[1:] in ids for link in links if link not in files)
    # The log and the adapter of each trained run, beside the page.
    assert len(files) == 2 * sum(1 for id_ in ids if re.fullmatch(r"run/.*/seed\d+", id_)) > 20
    assert all((tree.root / unquote(link)).exists() for link in files)
    assert all(source.startswith("data:") for source in page.values("src"))
    assert not any(tag in ("link", "iframe", "object", "base") for tag, _ in page.elements)
    # The one address is the paper's, in the citation, as text.
    assert set(re.findall(r"https?://[^\s}<\"']+", html)) == {
        "https://openreview.net/pdf?id=Umu6IsAUbS"
    }


def test_policy_allows_this_style_and_script_and_nothing_else(html: str, page: Page) -> None:
    policy = next(
        attrs["content"] or ""
        for tag, attrs in page.elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    # The policy would silence these, so they must not be relied on either.
    assert page.values("style") == []
    assert not [name for _, attrs in page.elements for name in attrs if name[:2] == "on"]


def test_hostile_text_is_inert_and_shown_as_it_is(html: str, page: Page) -> None:
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert "alert(1)" not in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    assert f"<i>R&D</i> {HOSTILE}" in page.visible
    assert LABELS["pissa"] in page.visible
    assert "a note with <b> & 'quotes'" in page.visible


def test_every_number_of_the_tables_appears(visible: str, tree: Tree) -> None:
    for row in read_table(tree.root / "6_tables/table2.csv"):
        for value in (row.published, row.measured, row.std):
            assert number_text(value) in visible
        assert number_text(row.difference, 2, True) in visible
        assert row.interval is not None
        assert f"{number_text(row.interval.low)} … {number_text(row.interval.high)}" in visible
    for run in read_runs(tree.root / "6_tables/runs.csv"):
        assert number_text(run.value) in visible
        assert number_text(run.first_grad_norm, 3) in visible


def test_every_cell_leads_to_its_runs(page: Page, tree: Tree) -> None:
    links = page.values("href")
    for row in read_table(tree.root / "6_tables/table2.csv"):
        assert row.runs
        assert all(f"#run/{path}" in links for path in row.runs)


def test_each_run_is_told_with_factors_command_log_curve_and_adapter(
    page: Page, visible: str, tree: Tree
) -> None:
    for row in ("gap-init", "lora-rank8"):
        for run in tree.runs_of(row):
            log = tree.root / "logs/4_train" / f"{run.path}.log"
            command = ["gapinit", "--log-file", str(log), "train", "--run", run.path]
            assert shlex.join(command) in visible
    assert "150 steps, 4.000 at the first, 0.027 at the last" in visible
    curves = [attrs for tag, attrs in page.elements if tag == "polyline"]
    assert len(curves) == 5 * 3
    assert all(len(str(attrs["points"]).split()) == 60 for attrs in curves)


def _log(folder: Path, losses: list[float]) -> Path:
    lines = [dict.fromkeys(STEP_COLUMNS, 1.0) | {"loss": loss} for loss in losses]
    write_csv(folder / "steps.csv", list(STEP_COLUMNS), lines)
    return folder / "steps.csv"


def test_a_curve_is_the_mean_of_stretches(tmp_path: Path) -> None:
    values = [float(n % 7) for n in range(130)]
    curve = read_curve(_log(tmp_path, values))
    xs, ys = zip(*(map(float, point.split(",")) for point in curve.points.split()), strict=True)
    assert (xs[0], xs[-1], min(ys), max(ys)) == (0, 100, 1, 29)
    assert (curve.steps, curve.first, curve.last) == (130, 0.0, float(129 % 7))
    falling = read_curve(_log(tmp_path, [9.0 - n for n in range(5)]))
    heights = [float(point.split(",")[1]) for point in falling.points.split()]
    # A loss that falls is drawn falling: y grows downwards.
    assert heights == sorted(heights) and heights[0] < heights[-1]


def test_sources_are_digests_of_the_very_files(visible: str, tree: Tree) -> None:
    for name in ("6_tables/table2.csv", "claims.csv", "6_tables/runs.csv"):
        assert f"{name} {sha256(tree.root / name)}" in visible


@pytest.mark.parametrize(
    "text",
    [
        "stage versions data",
        "135.37 ± 7.10 (Table 7)",
        "98.08 (Table 2)",
        "Is it the gap? Yes, as far as decided: 1 of 1 comparisons hold.",
        "CIDEr(gap-init) > CIDEr(pissa)",
        "171.50 against 183.85 · difference −12.35 (−20.50 … −3.25)",
        "The paper contradicts itself on standard LoRA at rank 1",
        "0 3.500 – adapted 1 1.250 adapted – 2 2.000 adapted adapted",
        "mini-blip2",
        "7 training images, 40 test images",
        "1 holds 1 does not hold 0 undecided",
    ],
)
def test_the_page_says_what_was_measured(visible: str, text: str) -> None:
    assert text in visible
    assert visible.index("Holds here") < visible.index("Does not hold")


def test_half_a_character_in_a_record_stays_an_escape(small: Path, tmp_path: Path) -> None:
    tree = Tree(shutil.copytree(small, tmp_path / "tree"))
    path = tree.root / "4_train" / tree.runs_of("gap-init")[0].path / "run.json"
    forget_digests(path)
    record = json.loads(path.read_text()) | {"inputs": {"trunk": "\ud83d"}}
    path.write_text(json.dumps(record))
    make_report(**tree.arguments, output=tmp_path / "report.html", link_files=False)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert r"\ud83d" in text
    # Nothing leads to a file where the page may not link to files, but its path is shown.
    alone = Page(text)
    assert all(link.startswith("#") for link in alone.values("href"))
    assert "4_train/mini-blip2" in alone.visible


def test_images_on_which_methods_differ_most_are_chosen(tree: Tree) -> None:
    rows = [row for row in read_table(tree.root / "6_tables/table2.csv") if row.metric == "CIDEr"]
    folder = tree.root / "5_evaluate"
    browser = browse_predictions(
        rows, scores=ScoreFolder(folder, folder), dataset="scenes", count=5,
        manifest=tree.arguments["manifest"],
    )  # fmt: skip
    trained = [row.runs[0] for row in rows if row.row != "zero-shot"]
    scores: dict[int, list[float]] = {}
    for run in trained:
        for sample in read_json(folder / run / "scenes.scores.json")["per_sample"]:
            scores.setdefault(sample["image_id"], []).append(sample["CIDEr"])
    widest = sorted(scores, key=lambda image: min(scores[image]) - max(scores[image]))[:5]
    assert [prediction.image_id for prediction in browser.predictions] == widest
    for prediction in browser.predictions:
        ciders = [caption.cider for caption in prediction.captions]
        assert ciders == sorted(ciders, reverse=True)
        assert len(prediction.references) == 5


def test_single_run_without_claims_as_with_a_folder_of_photographs(tmp_path: Path) -> None:
    tree = build(tmp_path, rows=("gap-init",), seeds=(42,), images=50, side=640)
    output = tmp_path / "report.html"
    make_report(**tree.arguments | {"figures": []}, output=output)
    page = Page(output.read_text(encoding="utf-8"))
    assert "evenly spaced from the best-scored caption to the worst" in page.visible
    assert "What holds here" not in page.visible
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert len(images) == 40 + 1
    for attrs in images[:40]:
        content = base64.b64decode(str(attrs["src"]).split(",")[1])
        assert max(Image.open(io.BytesIO(content)).size) == 320
        assert str(attrs["src"]).startswith("data:image/jpeg")
    assert output.stat().st_size < 6_000_000


@pytest.fixture(scope="session")
def small(once: Once) -> Path:
    """Return the root of a results tree of four rows and four images."""
    rows = ("lora-rank1", "pissa", "lora-rank8", "gap-init")
    return once("a small tree", lambda folder: build(folder, rows=rows, images=4))


DAMAGES: dict[str, tuple[str, Callable[[str], str] | None, str]] = {
    "no figure": ("7_figures/figure2.svg", None, r"figure2.svg: no such figure. Draw figure"),
    "no image": ("**/images/*", lambda text: "x", r"\.jpg: damaged or unreadable image"),
    "another verdict": (
        "claims.csv",
        lambda text: text.replace("does not hold", "perhaps"),
        r"claims.csv: line 3, column 'verdict': expected 'holds', 'does not hold'",
    ),
    "empty table": (
        "6_tables/table2.csv",
        lambda text: text.splitlines()[0],
        r"table2.csv: expected at least one row, found none",
    ),
    "unknown image": (
        "**/scenes.scores.json",
        lambda text: text.replace('"image_id": 1,', '"image_id": 999,'),
        r"manifest.json: split 'test' has no image 999",
    ),
}
"""Files, what happens to their text (None: they are deleted), and the message."""


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(small: Path, tmp_path: Path, name: str) -> None:
    pattern, change, message = DAMAGES[name]
    tree = Tree(shutil.copytree(small, tmp_path / "tree"))
    for path in list(tree.root.glob(pattern)):
        forget_digests(path)
        text = path.read_text(encoding="latin-1")
        path.unlink()
        if change:
            path.write_text(change(text), encoding="latin-1")
    with pytest.raises(GapinitError, match=message):
        make_report(**tree.arguments, output=tmp_path / "report.html")


def test_thumbnail_is_upright_and_without_metadata(tmp_path: Path) -> None:
    image = Image.new("RGB", (1000, 500), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010F] = "a camera"
    image.save(tmp_path / "photo.jpg", exif=exif)
    uri, width, height = thumbnail(tmp_path / "photo.jpg")
    assert (width, height) == (160, 320)
    content = base64.b64decode(uri.split(",")[1])
    assert not Image.open(io.BytesIO(content)).getexif()


def test_numbers_are_printed_as_in_papers() -> None:
    for value, text in ((-0.001, "0.00"), (-1.005, "−1.00"), (140.594, "140.59"), (None, "")):
        assert number_text(value) == text
    for value, text in ((0.0, "< 0.001"), (0.0499, "0.050"), (None, "")):
        assert p_text(value) == text


def test_snakemake_captions_render(repository: Path, tree: Tree) -> None:
    """Every caption is valid reStructuredText after Jinja, for every figure."""
    figures = ["figure1a", "figure1c", "figure2", "figure3", "figure4", "figure5", "curves"]
    files = sorted((repository / "workflow/report").glob("*.rst"))
    assert {"workflow", "table", "claims", "figure"} <= {path.stem for path in files}
    for path in files:
        template = Environment(undefined=StrictUndefined).from_string(path.read_text("utf-8"))
        seen = set()
        for figure in figures:
            snakemake = SimpleNamespace(
                wildcards=SimpleNamespace(figure=figure, table="table2"),
                config=tree.config.model_dump(by_alias=True),
            )
            settings = {"halt_level": 2, "report_level": 2}
            text = template.render(snakemake=snakemake)
            body = publish_parts(text, writer="html", settings_overrides=settings)["body"]
            assert body.strip()
            seen.add(body)
        assert len(seen) == (len(figures) if path.stem == "figure" else 1)

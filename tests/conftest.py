"""What all test modules share: settings of the session, and fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

from .file_server import Site, Table, published

if TYPE_CHECKING:
    from .report_tree import Tree

# Workers of pytest-xdist share the cores. Set before torch and numpy are imported, and inherited by
# every command that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# A shared machine, as CI's is, stalls now and then: no limit on a single example's time.
settings.register_profile("gapinit", deadline=None, print_blob=True)
settings.load_profile("gapinit")

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of the whole workflow, which take longest, so that none is left last."""
    items.sort(key=lambda item: "grid" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return an empty results folder, at a path that an unquoted shell command would break on."""
    folder = tmp_path / "results of a run"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Return a function that builds a folder once a session; all workers then share it.

    `once(name, build)` calls `build(folder)` in the first worker that asks for `name` and returns
    the folder. Tests must not write into it.
    """
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent

    def built(name: str, build: Callable[[Path], object]) -> Path:
        folder, complete = base / name, base / f"{name}.complete"
        with FileLock(base / f"{name}.lock"):
            if not complete.exists():
                folder.mkdir()  # fails where an earlier worker's build did
                build(folder)
                complete.touch()
        return folder

    return built


@pytest.fixture(scope="session")
def tree(once: Once) -> Tree:
    """Return a small results tree with its report, `report.html`; its folder has a space."""
    from gapinit.report.page import make_report

    from .report_tree import Tree, build

    def made(folder: Path) -> None:
        make_report(**build(folder).arguments, output=folder / "report.html")

    return Tree(once("a results tree", made))


@pytest.fixture(scope="session")
def grid(once: Once, repository: Path) -> Path:
    """Return a folder in which every rule ran once on `config/test.yaml`; its name has a space."""
    from .workflow_calls import snakemake

    configuration = ["--configfile", str(repository / "config/test.yaml")]
    return once("a workflow", lambda folder: snakemake(folder, *configuration))


@pytest.fixture(scope="session")
def server() -> Iterator[Site]:
    """Run one file server for all tests of downloads."""
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def site(server: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return the file server, with small files in the real formats and without a fault."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.reset(published())
    return server


@pytest.fixture
def table(site: Site, tmp_path: Path) -> Table:
    """Return a table of the server's files, to be written to a temporary folder."""
    return Table(site, tmp_path / "downloads.yaml")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prepared dataset of `small_backbone.DATASET`, made once."""
    import yaml

    from gapinit.data.dataset import prepare_dataset

    from .small_backbone import DATASET

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(DATASET), encoding="utf-8")
    prepare_dataset(folder / "tiny.yaml", folder / "data")
    return folder / "data"


@pytest.fixture(scope="session")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """Return what gives a case of `backbone_cases.py` its `World`: each is built once."""
    import torch

    from .backbone_cases import Case, World

    torch.set_num_threads(1)

    @cache
    def build(case: Case) -> World:
        folder = tmp_path_factory.mktemp(case.name) / "backbone"
        case.write(folder)
        return World(case, folder)

    return build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the model, processor and pairs of the library's tests (`small_library.py`)."""
    from .small_library import small_library

    return small_library(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def plain(library: Any) -> Any:
    """Return the library's plain model. No test changes it."""
    return library.model().requires_grad_(False)


@pytest.fixture(scope="session")
def expected(library: Any, plain: Any) -> Any:
    """Return the gaps that `small_library.reference` measures on it, independently."""
    from .small_library import reference

    return reference(plain, library.processor(), library.pairs)


@pytest.fixture(scope="session")
def gap(library: Any, plain: Any) -> Any:
    """Return the plain model's gap."""
    import gapinit

    return gapinit.estimate_gap(plain, library.processor(), library.pairs, progress=False)

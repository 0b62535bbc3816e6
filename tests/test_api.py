"""The public names of the package: what they are, what they cost, in which order they may come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gapinit


def python(code: str, path: Path | str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds packages in `path` first."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(path)},
    )


def states(number: int = 30, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((number, width)) + 1, generator.standard_normal(
        (number, width)
    )


def test_import_costs_nothing(repository: Path) -> None:
    code = (
        "import sys, gapinit; dir(gapinit); gapinit.__version__\n"
        "heavy = {'numpy', 'torch', 'pandas', 'h5py', 'scipy', 'pydantic', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "gapinit.spot_gap, gapinit.gap_vector\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = python(code, repository)
    assert done.returncode == 0, done.stderr
    # The functions need numpy and nothing else.
    assert done.stdout.splitlines() == ["[]", "['numpy']"]


def test_names() -> None:
    from gapinit.errors import GapinitError
    from gapinit.gap.spot import spot_gap
    from gapinit.gap.vector import gap_vector

    assert gapinit.GapinitError is GapinitError
    assert gapinit.gap_vector is gap_vector
    assert gapinit.spot_gap is spot_gap
    library = {"GapVectors", "alignment", "estimate_gap", "initialize_lora_gap_weights"}
    functions = {"gap_vector", "spot_gap", "load_processor", "target_modules"}
    others = {"GapAlignmentCallback", "GapinitError", "__version__"}
    assert set(gapinit.__all__) == library | functions | others
    assert set(gapinit.__all__) <= set(dir(gapinit))
    names: dict[str, object] = {}
    exec("from gapinit import *", names)
    assert set(gapinit.__all__) <= names.keys()
    with pytest.raises(AttributeError, match="module 'gapinit' has no attribute 'gap_matrix'"):
        gapinit.gap_matrix  # noqa: B018
    assert not hasattr(gapinit, "__path_to_nowhere__")


def test_no_public_name_is_a_submodule() -> None:
    folder = Path(gapinit.__file__).parent
    submodules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {"gap", "train", "errors"} <= submodules
    assert not submodules & set(gapinit.__all__)
    assert set(gapinit._MODULES) == set(gapinit.__all__) - {"__version__"}


def test_the_functions_work() -> None:
    text, vision = states()
    np.testing.assert_allclose(
        gapinit.gap_vector(text, vision), (text - vision).mean(axis=0), rtol=1e-12
    )
    assert gapinit.gap_vector(text, vision, neighbours=3).shape == (5,)
    found = gapinit.spot_gap(text, vision)
    assert found.per_sample.shape == (30,)
    assert found.score == pytest.approx(found.per_sample.mean(), rel=1e-12)
    options = {"neighbours": 10, "alpha_semantic": 1.0, "alpha_geometric": 1.0}
    np.testing.assert_array_equal(
        gapinit.spot_gap(text, vision, **options).per_sample, found.per_sample
    )
    doubled = gapinit.spot_gap(text, vision, alpha_semantic=2.0, alpha_geometric=2.0)
    assert doubled.score == pytest.approx(2 * found.score, rel=1e-12)
    with pytest.raises(gapinit.GapinitError, match="at most 29"):
        gapinit.gap_vector(text, vision, neighbours=30)


def test_version_is_that_of_the_installed_package(repository: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "gapinit-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: gapinit\nVersion: 9.8.7\n")
    (tmp_path / "gapinit").symlink_to(repository / "gapinit", target_is_directory=True)
    done = python("import gapinit; print(gapinit.__version__)", tmp_path)
    assert (done.stdout, done.stderr) == ("9.8.7\n", "")


def test_a_checkout_that_is_not_installed_has_a_version_too(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "gapinit").symlink_to(repository / "gapinit", target_is_directory=True)
    # -S: without site-packages, where gapinit may be installed.
    code = (
        f"import sys; sys.path[0] = {str(tmp_path)!r}; import gapinit; print(gapinit.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("0+unknown\n", "")

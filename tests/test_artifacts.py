"""Artifacts: whole or not at all, whatever ends the writer, and refused by name when damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapinit.artifacts.artifacts import (
    FORMAT_VERSION,
    atomic_file,
    atomic_folder,
    create_hdf5,
    digest,
    hdf5_inputs,
    open_hdf5,
    package_versions,
    read_json,
    sha256,
    write_json,
)
from gapinit.artifacts.digests import is_record
from gapinit.errors import GapinitError

from .plain_json import forget_digests

WRITERS = {
    "file": (
        "with atomic_file(path) as partial:\n"
        "    with open(partial, 'w') as file:\n"
        "        file.write('half')\n"
        "        file.flush()\n"
        "        wait()\n"
    ),
    "folder": (
        "with atomic_folder(path) as partial:\n"
        "    (partial / 'half').write_text('half')\n"
        "    wait()\n"
    ),
    "hdf5": (
        "with create_hdf5(path, 'gap', {}) as file:\n"
        "    file['half'] = [1.0, 2.0]\n"
        "    file.flush()\n"
        "    wait()\n"
    ),
}


class Interruption(BaseException):
    """What Ctrl-C raises is no Exception either."""


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not is_record(path)}


def write_gap(path: Path, **inputs: object) -> None:
    with create_hdf5(path, "gap", inputs or {"size": 256}) as file:
        file["gap"] = np.arange(4096, dtype=np.float64)


def refusal(path: Path, kind: str = "gap") -> str:
    with pytest.raises(GapinitError) as caught, open_hdf5(path, kind):
        pass
    assert str(path) in str(caught.value)
    return str(caught.value)


def kill_while_writing(path: Path, writer: str, with_signal: int) -> None:
    """Start a process that writes half of an artifact, and end it there."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gapinit.artifacts.artifacts import atomic_file, atomic_folder, create_hdf5\n"
        "path = Path(sys.argv[1])\n"
        "def wait():\n    print('half', flush=True)\n    time.sleep(60)\n" + WRITERS[writer]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(with_signal)
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_whose_writer_fails_is_as_it_was(results, error, before):
    path = results / "scores.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), atomic_file(path) as partial:
        partial.write_text("half of the new")
        assert partial.parent == path.parent, "a rename is atomic only within a file system"
        raise error
    assert entries(results) == ({"scores.json"} if before else set())
    assert before is None or path.read_text() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interruption])
def test_a_folder_whose_writer_fails_is_as_it_was(results, error):
    path = results / "adapter"
    path.mkdir()
    (path / "weights").write_text("old")
    with pytest.raises(error), atomic_folder(path) as partial:
        (partial / "weights").write_text("half of the new")
        raise error
    assert entries(results) == {"adapter"}
    assert (path / "weights").read_text() == "old"


def test_a_folder_replaces_the_old_one_as_a_whole(results):
    path = results / "a" / "b" / "adapter"
    for name in ("first", "second"):
        with atomic_folder(path) as partial:
            (partial / name).write_text(name)
    assert entries(path) == {"second"}
    assert entries(path.parent) == {"adapter"}


def test_a_file_is_replaced_by_its_last_writer(results):
    path = results / "a" / "scores.json"
    for text in ("first", "second, and longer"):
        with atomic_file(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() != text
    assert path.read_text() == "second, and longer"
    assert entries(path.parent) == {"scores.json"}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_nothing_under_the_final_name(results, writer, with_signal):
    path = results / "artifact"
    kill_while_writing(path, writer, with_signal)
    assert not path.exists()
    assert all(name.startswith(".") and name.endswith(".partial") for name in entries(results))


@pytest.mark.parametrize("writer", ["file", "hdf5"])
def test_a_killed_writer_leaves_the_old_file(results, writer):
    path = results / "artifact"
    write_gap(path, size=16)
    before = path.read_bytes()
    kill_while_writing(path, writer, signal.SIGKILL)
    assert path.read_bytes() == before
    with open_hdf5(path, "gap") as file:
        assert hdf5_inputs(file) == {"size": 16}


def test_readers_never_see_a_half_written_file(results):
    """A reader beside a writer that replaces the file over and over always finds a whole one."""
    path = results / "run.json"
    write_json(path, [0] * 50_000)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gapinit.artifacts.artifacts import write_json\n"
        "for number in range(1, 20):\n"
        "    write_json(Path(sys.argv[1]), [number] * 50_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen = set()
    try:
        while writer.poll() is None:
            content = read_json(path)
            assert len(content) == 50_000 and len(set(content)) == 1
            seen.add(content[0])
            time.sleep(0.005)
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    assert read_json(path)[0] == 19
    assert len(seen) > 1, "the reader did not run beside the writer"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(content=json_values)
def test_json_is_read_as_it_was_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "content.json"
    write_json(path, content)
    assert read_json(path) == content
    assert json.loads(path.read_bytes()) == content


def test_json_has_no_nan(results):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(results / "scores.json", {"CIDEr": math.nan})
    assert entries(results) == set()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not valid JSON"), (b'{"a": [1, 2', "not valid JSON"), (b'"\xff"', "not valid JSON")],
)
def test_malformed_json_is_named(results, content, said):
    path = results / "scores.json"
    path.write_bytes(content)
    with pytest.raises(GapinitError) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_json_that_is_not_there_is_named(results):
    for path in (results / "none.json", results):
        with pytest.raises(GapinitError) as caught:
            read_json(path)
        assert str(path) in str(caught.value)


def test_sha256_is_that_of_the_bytes(results):
    path = results / "weights"
    path.write_bytes(os.urandom(3_000_000))
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@given(content=st.dictionaries(st.text(), json_values, min_size=2, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(content):
    assert digest(content) == digest(dict(reversed(content.items())))


@given(one=json_values, other=json_values)
def test_different_contents_have_different_digests(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


def test_hdf5_is_read_as_it_was_written_with_what_made_it(results):
    path = results / "gap.h5"
    inputs = {"states": "ab" * 32, "size": 256, "neighbours": None, "folder": Path("a b")}
    write_gap(path, **inputs)
    with open_hdf5(path, "gap") as file:
        np.testing.assert_array_equal(file["gap"], np.arange(4096))
        assert hdf5_inputs(file) == {**inputs, "folder": "a b"}
        packages = json.loads(file.attrs["packages"])
        assert packages["numpy"] == np.__version__
        assert packages == package_versions()
        assert file.mode == "r"
    assert entries(results) == {"gap.h5"}


def test_packages_that_are_not_installed_are_recorded_as_such():
    assert package_versions(["no-such-package-here"]) == {"no-such-package-here": "not installed"}


def test_an_hdf5_writer_that_fails_leaves_nothing(results):
    path = results / "gap.h5"
    with pytest.raises(KeyboardInterrupt), create_hdf5(path, "gap", {}) as file:
        file["gap"] = [1.0]
        raise KeyboardInterrupt
    assert entries(results) == set()


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 512, 4096, -4096, -1])
def test_a_truncated_hdf5_file_is_refused(results, kept):
    path = results / "gap.h5"
    write_gap(path)
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    assert "altered since it was written" in refusal(path)
    forget_digests(path)
    assert "not a readable HDF5 file" in refusal(path)
    assert "run the stage again" in refusal(path)


def test_a_file_that_is_no_hdf5_is_refused(results):
    path = results / "gap.h5"
    path.write_text("<html>Not found</html>" * 100)
    assert "not a readable HDF5 file" in refusal(path)


def test_hdf5_that_is_not_there_is_refused(results):
    assert "no such file" in refusal(results / "gap.h5")
    assert "'gap'" in refusal(results)


def test_hdf5_of_another_program_or_kind_is_refused(results):
    path = results / "gap.h5"
    with h5py.File(path, "w") as file:
        file["gap"] = [1.0]
    assert "expected an HDF5 file of kind 'gap'" in refusal(path)
    write_gap(path)
    message = refusal(path, kind="states")
    assert "kind 'states'" in message and "found 'gap'" in message


def test_hdf5_of_another_format_version_is_refused(results):
    path = results / "gap.h5"
    write_gap(path)
    forget_digests(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    message = refusal(path)
    assert f"version {FORMAT_VERSION + 1}" in message and f"expected {FORMAT_VERSION}" in message


@pytest.mark.parametrize("mark", [None, False])
def test_an_incomplete_hdf5_file_is_refused(results, mark):
    path = results / "gap.h5"
    write_gap(path)
    forget_digests(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
        if mark is not None:
            file.attrs["complete"] = mark
    assert "incomplete" in refusal(path)


def test_a_killed_writers_partial_file_is_refused_even_when_renamed_by_hand(results):
    path = results / "gap.h5"
    kill_while_writing(path, "hdf5", signal.SIGKILL)
    (partial,) = results.iterdir()
    partial.rename(path)
    message = refusal(path)
    assert "incomplete" in message or "not a readable HDF5 file" in message

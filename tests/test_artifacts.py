"""Artifacts: whole or absent, whatever ends the writer, and refused by name when damaged."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
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
    write_json,
)
from gapinit.errors import GapinitError

from .plain_json import names

WRITERS = {
    "file": "with atomic_file(path) as partial:\n    partial.write_text('half')\n    wait()\n",
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


def write_gap(path: Path, **inputs: object) -> None:
    with create_hdf5(path, "gap", inputs or {"size": 256}) as file:
        file["gap"] = np.arange(4096, dtype=np.float64)


def refusal(path: Path, kind: str = "gap") -> str:
    with pytest.raises(GapinitError) as caught, open_hdf5(path, kind):
        pass
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_failing_writer_would_replace_stays(results, error):
    file, folder = results / "scores.json", results / "adapter"
    with pytest.raises(error), atomic_file(file):
        raise error
    assert names(results) == []
    for path in (file, folder / "weights"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    with pytest.raises(error), atomic_file(file) as partial:
        partial.write_text("half of the new")
        assert partial.parent == results, "a rename is atomic only within a file system"
        raise error
    with pytest.raises(error), atomic_folder(folder) as partial:
        (partial / "weights").write_text("half of the new")
        raise error
    assert file.read_text() == (folder / "weights").read_text() == "old"
    assert names(results) == ["adapter", "scores.json"]


def test_the_last_writer_replaces_a_file_and_a_folder_as_a_whole(results):
    path = results / "a" / "b"
    for name in ("first", "second"):
        with atomic_folder(path / "adapter") as partial:
            (partial / name).write_text(name)
        with atomic_file(path / "scores.json") as partial:
            partial.write_text(name)
    assert names(path / "adapter") == ["second"]
    assert names(path) == ["adapter", "scores.json"]
    assert (path / "scores.json").read_text() == "second"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_killed_writer_leaves_the_old_artifact_and_the_next_one_clears_up(results, writer):
    path = results / "artifact [1]"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gapinit.artifacts.artifacts import atomic_file, atomic_folder, create_hdf5\n"
        "path = Path(sys.argv[1])\n"
        "def wait():\n    print('half', flush=True)\n    time.sleep(60)\n" + WRITERS[writer]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = names(results)
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".partial")
    (results / f".{path.name}.1.partial").write_text("of a process that runs")
    (results / f".other.{process.pid}.partial").write_text("of another file")
    write_gap(path)
    kept = [f".{path.name}.1.partial", f".other.{process.pid}.partial", path.name]
    assert names(results) == kept
    with open_hdf5(path, "gap") as file:
        assert hdf5_inputs(file) == {"size": 256}


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
    while writer.poll() is None:
        content = read_json(path)
        assert len(content) == 50_000 and len(set(content)) == 1
        seen.add(content[0])
        time.sleep(0.005)
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


@settings(max_examples=40)
@given(content=json_values)
def test_json_is_read_as_it_was_written(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "content.json"
    write_json(path, content)
    assert read_json(path) == content
    assert json.loads(path.read_bytes()) == content


def test_json_has_no_nan(results):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(results / "scores.json", {"CIDEr": math.nan})
    assert names(results) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ('{"a": [1, 2', "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ('{"a": 1, "a": 2}', "repeated key 'a'"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "not readable JSON"),
    ],
)
def test_json_that_is_malformed_or_ambiguous_is_refused(results, text, words):
    (results / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(GapinitError, match=rf"a\.json: .*{words}"):
        read_json(results / "a.json")


def test_json_that_is_not_there_is_named(results):
    for path in (results / "none.json", results):
        with pytest.raises(GapinitError, match=path.name):
            read_json(path)


@settings(max_examples=40)
@given(one=json_values, other=json_values)
def test_a_digest_is_that_of_the_content(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same
    assert digest({"a": one, "b": other}) == digest({"b": other, "a": one})


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
    assert package_versions(["no-such-package-here"]) == {"no-such-package-here": "not installed"}


def test_hdf5_that_is_missing_is_refused_and_without_a_checksum_read(results):
    path = results / "gap.h5"
    assert "no such file" in refusal(path) and "'gap'" in refusal(results)
    write_gap(path)
    (results / ".gap.h5.sha256").unlink()
    with open_hdf5(path, "gap") as file:
        assert file["gap"][7] == 7
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable HDF5 file" in refusal(path)


def change_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def link_out(file):
    file["other"] = h5py.ExternalLink("/etc/passwd", "/x")


def store_outside(file):
    file.create_dataset("other", (3,), "u1", external=[("/etc/passwd", 0, 3)])


def promise_too_much(file):
    file.create_dataset("other", (1 << 40,), "f4")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_attribute("kind", "states"), "of kind 'gap', found 'states'"),
        (change_attribute("format_version", 2), f"version '{FORMAT_VERSION}', found '2'"),
        (change_attribute("complete", False), "complete 'True', found 'False'"),
        (lambda file: file.attrs.pop("kind"), "of kind 'gap', found 'None'"),
        (link_out, "'other' is not a contiguous array"),
        (store_outside, "'other' is not a contiguous array"),
        (promise_too_much, "'other' is not a contiguous array"),
        (lambda file: file.create_group("other"), "'other' is not a contiguous array"),
    ],
)
def test_hdf5_that_gapinit_did_not_write_is_refused(results, damage, words):
    path = results / "gap.h5"
    write_gap(path)
    (results / ".gap.h5.sha256").unlink()
    with h5py.File(path, "r+") as file:
        damage(file)
    assert words in refusal(path)


def test_a_file_that_is_no_hdf5_is_refused(results):
    path = results / "gap.h5"
    path.write_text("<html>Not found</html>" * 100)
    assert "not a readable HDF5 file" in refusal(path)

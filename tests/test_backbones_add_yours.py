"""`docs/backbones.md` as a user follows it: one module and one YAML, and Idefics3 is a backbone.

The example is installed in a temporary folder as a package would be; nothing of gapinit is changed.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from tokenizers import processors
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import gapinit.backbones as families
from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import find_family, known_families, load_backbone, make_backbone
from gapinit.backbones.base import Backbone
from gapinit.backbones.hub import HubSettings
from gapinit.backbones.in_memory import wrap_model
from gapinit.config.backbone_settings import read_recipe
from gapinit.config.yaml_files import read_settings
from gapinit.errors import GapinitError
from gapinit.evaluate.predict import predict

from . import test_backbones_equal as equal
from . import test_backbones_stages as stages
from .backbone_cases import ATTENTION, GATED, Case, World, byte_level, draw_weights, pictures
from .small_backbone import DATASET, SmallWorld

DOCS = Path(__file__).resolve().parents[1] / "docs"
EXAMPLE = DOCS / "examples"
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<pad>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<end_of_utterance>",
)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def tokenizer_of_llama() -> Any:
    """Return a byte-level tokenizer that begins every text with BOS, as Llama 3's does."""
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[2]}
    tokenizer = byte_level(SPECIAL, **names)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], tokenizer.bos_token_id)]
    )
    return tokenizer


def write_idefics3(folder: Path) -> None:
    """Write a small Idefics3 whose processor would split images, as the published one does."""
    tokenizer = tokenizer_of_llama()
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 400,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 4,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Idefics3ForConditionalGeneration(config)
    draw_weights(model, tokenizer.convert_tokens_to_ids("<end_of_utterance>"))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader = Idefics3ImageProcessorPil(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 24}
    )
    reader.save_pretrained(folder)


def real_inputs(backbone: Backbone, text: str, image: Image.Image) -> dict[str, Tensor]:
    """Return what the real processor makes of a text with `<image>` in it."""
    processor = Idefics3Processor(
        backbone.processor.image_processor, backbone.processor.tokenizer, image_seq_len=9
    )
    given: Any = {"images_kwargs": {"do_image_splitting": False}, "return_tensors": "pt"}
    return dict(processor(text=text, images=image, **given))


def idefics3_arguments(
    model: Any, backbone: Backbone, images: Sequence[Image.Image], input_ids: Tensor
) -> dict[str, Tensor]:
    each = [real_inputs(backbone, "<image>", image) for image in images]
    names = ("pixel_values", "pixel_attention_mask")
    return {name: torch.cat([found[name] for found in each]) for name in names}


def idefics3_image_tokens(backbone: Backbone, image: Image.Image) -> int:
    ids = real_inputs(backbone, "<image>", image)["input_ids"]
    return int((ids == backbone.image_token_id).sum())


IDEFICS3 = Case(
    name="idefics3",
    write=write_idefics3,
    layers="model.text_model.layers",
    norm="model.text_model.norm",
    modules=(*ATTENTION, *GATED),
    vision_modules=(
        "model.vision_model.encoder.layers.0.self_attn.out_proj",
        "model.vision_model.encoder.layers.1.mlp.fc2",
    ),
    arguments=idefics3_arguments,
    image_tokens=idefics3_image_tokens,
)


def install(site: Path, declared: str, code: str | None = None) -> None:
    """Put a package of one module, `my_idefics3`, and its entry point into a folder."""
    information = site / "my_idefics3-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-idefics3\nVersion: 0.1\n"
    )
    (information / "entry_points.txt").write_text(f"[gapinit.backbones]\n{declared}\n")
    if code is None:
        shutil.copy(EXAMPLE / "idefics3.py", site / "my_idefics3.py")
    else:
        (site / "my_idefics3.py").write_text(code)


@pytest.fixture
def forget() -> Iterator[None]:
    """Forget, behind a test, the modules that it imported from temporary folders."""
    kept = set(sys.modules)
    yield
    for name in set(sys.modules) - kept:
        if name in ("my_idefics3", "gapinit.backbones.idefics3"):
            del sys.modules[name]
            families.__dict__.pop(name.rpartition(".")[2], None)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the example as a package that declares an entry point."""
    site = tmp_path_factory.mktemp("site")
    install(site, "idefics3 = my_idefics3:Idefics3Backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield
    sys.modules.pop("my_idefics3", None)


@pytest.fixture(scope="module")
def world(package: None, world_of: Callable[[Case], World]) -> World:
    return world_of(IDEFICS3)


# Every equality that gapinit's own families are held to, with this module's `world`.
globals().update({name: value for name, value in vars(equal).items() if name[:5] == "test_"})


@pytest.mark.parametrize("image", pictures(), ids=lambda image: "x".join(map(str, image.size)))
def test_tokens_are_those_of_the_real_processor(world: World, image: Image.Image) -> None:
    backbone = world.loaded
    prompts = backbone.prompts
    for prompt in (prompts.caption, prompts.question.format(question="Is it red?")):
        behind = prompt.removeprefix("<fake_token_around_image>")
        [ids] = backbone.encode_prompts([prompt], 4)
        found = [*backbone.head, *[backbone.image_token_id] * 9, *ids]
        expected = real_inputs(backbone, f"User:<image>{behind}", image)
        assert found == expected["input_ids"][0].tolist()
        assert backbone.head[0] == backbone.processor.tokenizer.bos_token_id
        pixels = backbone.pixels([image])
        for name, value in pixels.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
        [(taught, labels)] = backbone.encode_segments([[(prompt, False), ("a star", True)]], 60)
        answered = real_inputs(backbone, f"User:<image>{behind} a star<end_of_utterance>", image)
        assert [*found, *taught[len(ids) :], labels[-1]] == answered["input_ids"][0].tolist()


def test_a_package_adds_a_family(world: World) -> None:
    assert known_families()["idefics3"] == "my_idefics3:Idefics3Backbone"
    assert type(world.loaded).__module__ == "my_idefics3"
    wrapped = wrap_model(world.stock(), world.loaded.processor)
    assert type(wrapped) is type(world.loaded)


@pytest.mark.usefixtures("forget")
def test_a_module_beside_gapinits_own_adds_a_family(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "entry_points", lambda **_: [])
    with pytest.raises(GapinitError, match="'idefics3' is not supported, .*: blip-2, .*add one"):
        load_backbone(world.folder)
    with pytest.raises(GapinitError, match=r"\('blip-2'\), .*how to add a family"):
        wrap_model(Idefics3ForConditionalGeneration.from_pretrained(world.folder))
    shutil.copy(EXAMPLE / "idefics3.py", tmp_path)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    assert known_families()["idefics3"] == "gapinit.backbones.idefics3:Idefics3Backbone"
    assert type(load_backbone(world.folder)).__module__ == "gapinit.backbones.idefics3"


def test_gapinits_own_families_are_known_by_their_model_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(families, "entry_points", lambda **_: [])
    for name in known_families():
        family = find_family(name)
        assert family is not None and family.model_class.config_class.model_type == name
        assert f"| `{family.model_class.__name__}` |" in page(), "the page's table"
    for name in ("base", "mini", "mini_blip2", "hub", "in_memory", "", None, ["gemma3"]):
        assert find_family(name) is None


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("declared", "code", "message"),
    [
        ("my_idefics3:Other", None, "my_idefics3:Other: .*cannot be imported.*'Other'"),
        ("my_idefics3", None, "my_idefics3: .*cannot be imported"),
        ("nowhere:Family", None, "nowhere:Family: .*cannot be imported.*No module"),
        ("my_idefics3:ANSWER", None, "not a backbone family, expected a subclass"),
        ("my_idefics3:X", "class X: ...", "not a backbone family, expected a subclass"),
        (
            "my_idefics3:X",
            "from gapinit.backbones.base import Backbone\nclass X(Backbone): model_class = int",
            "lacks: .*image_tokens, .*vision_pattern .docs/backbones.md",
        ),
    ],
)
def test_a_family_that_is_none_is_told(
    declared: str, code: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules.pop("my_idefics3", None)
    install(tmp_path / "site", f"mine-0.1 = {declared}", code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(GapinitError, match=message):
        find_family("mine-0.1")


def test_a_package_replaces_no_family_of_gapinit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "gemma3 = my_idefics3:Idefics3Backbone")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert known_families()["gemma3"] == "gapinit.backbones.gemma3:Gemma3Backbone"


def test_the_yaml_makes_a_backbone_that_goes_through_every_stage(
    world: World, tiny_data: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((EXAMPLE / "idefics3.yaml").read_text(encoding="utf-8"))
    question = "<fake_token_around_image>{question}<end_of_utterance>\nAssistant:"
    content |= {"folder": str(world.folder), "dtype": "float32", "prompts": {"question": question}}
    settings = tmp_path / "idefics3.yaml"
    settings.write_text(yaml.safe_dump(content), encoding="utf-8")
    small = SmallWorld(tmp_path)
    make_backbone(settings, None, small.backbone, 1)
    assert load_backbone(small.backbone).prompts.question == question
    (tmp_path / "data").symlink_to(tiny_data)
    run, features = stages.trained(small, exclude_bottom=1), tmp_path / "features.h5"
    assert read_json(small.layers)["naive"] == [1, 2]
    predictions = []
    for number, adapter in enumerate((None, run / "adapter")):
        output = tmp_path / f"predictions_{number}.json"
        options = {"num_beams": 1, "max_new_tokens": 12, "batch_size": 3}
        predict(small.backbone, small.manifest, features, adapter, output, **options)
        predictions.append(read_json(output))
    zero_shot, trained = predictions
    assert len(zero_shot) == len(trained) == DATASET["images"]["test"]
    assert zero_shot != trained
    PeftModel.from_pretrained(world.stock(), str(run / "adapter"))


def test_the_yaml_says_what_a_backbones_file_says() -> None:
    settings = read_settings(EXAMPLE / "idefics3.yaml", HubSettings)
    assert settings.family == "hub" and settings.repository.startswith("HuggingFaceM4/")
    recipe = read_recipe(EXAMPLE / "idefics3.yaml")
    assert recipe.training is not None and recipe.decoder_layers == 32
    assert recipe.training.batch_size * recipe.training.gradient_accumulation == 64


def page() -> str:
    return (DOCS / "backbones.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["idefics3.py", "idefics3.yaml"])
def test_the_page_quotes_the_example_as_it_is(name: str) -> None:
    quoted = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL)
    assert (EXAMPLE / name).read_text(encoding="utf-8") in quoted


def test_the_page_explains_all_that_a_family_says() -> None:
    said = [*Backbone.__abstractmethods__, *Backbone.__annotations__]
    for name in said:
        assert re.search(rf"^\| `{name}[`(]", page(), re.MULTILINE), name

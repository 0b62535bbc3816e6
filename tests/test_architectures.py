"""The architecture files say what the published models are: counts, widths, image tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gapinit.backbones.architecture import Architecture, find_architecture
from gapinit.backbones.facts import Facts, architecture_facts, backbone_facts, layer_groups
from gapinit.config.yaml_files import read_settings
from gapinit.errors import GapinitError

from .architecture_cases import write_tiny

# Parameters as the model cards and the hub give them; hidden size, layers, image tokens of 640x480.
PUBLISHED = {
    "blip2-opt-2.7b": (3.74e9, 2560, 32, 32),
    "qwen2-vl-7b-instruct": (8.29e9, 3584, 28, 391),
    "qwen2.5-vl-7b-instruct": (8.29e9, 3584, 28, 391),
    "gemma3-4b": (4.30e9, 2560, 34, 256),
    "llama-3.2-11b-vision": (10.67e9, 4096, 40, 4 * 1601),
    "llava-1.5-7b": (7.06e9, 4096, 32, 576),
}


@pytest.fixture(scope="module")
def facts(repository: Path) -> dict[str, Facts]:
    return {name: backbone_facts(name, repository / "config") for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(facts, name):
    parameters, hidden, layers, image = PUBLISHED[name]
    found = facts[name]
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert found.parameters == found.vision_parameters + found.language_parameters
    assert (found.hidden_size, found.num_layers) == (hidden, layers)
    assert found.image_tokens() == image
    assert all(weight.is_meta for weight in found.backbone.model.parameters())


def test_every_hub_backbone_has_an_architecture_with_as_many_layers(repository, facts):
    for path in (repository / "config" / "backbones").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        if settings["family"] == "hub":
            assert settings["decoder_layers"] == facts[path.stem].num_layers


def test_no_file_is_of_a_backbone_that_is_not_there(repository):
    architectures = {path.stem for path in (repository / "config" / "architectures").iterdir()}
    assert architectures == set(PUBLISHED)


def test_adapter_and_state_bytes_by_hand(facts):
    found = facts["blip2-opt-2.7b"]
    # OPT: four matrices 2560 x 2560, fc1 10240 x 2560, fc2 2560 x 10240.
    assert found.adapter([31], rank=1) == 4 * 5120 + 2 * 12800
    assert found.states_bytes(1280) == 2 * 32 * 1280 * 2560 * 4
    assert found.kv_bytes(50) == 2 * 32 * 50 * 2560 * 2
    assert found.image_trunk_bytes() == 32 * 2560 * 2
    assert found.value_bytes == 2  # bfloat16; states are pooled in float32
    qwen = facts["qwen2-vl-7b-instruct"]
    assert qwen.image_trunk_bytes() == (15 + 391) * 3584 * 2
    assert qwen.kv_bytes(100) == 2 * 28 * 100 * 4 * 128 * 2


def test_who_takes_the_gap_itself(facts):
    takes = {it.module: it.takes for it in facts["qwen2-vl-7b-instruct"].targets[0]}
    assert takes == {
        "self_attn.q_proj": "gap",
        "self_attn.k_proj": "W0 gap",
        "self_attn.v_proj": "W0 gap",
        "self_attn.o_proj": "gap",
        "mlp.gate_proj": "W0 gap",
        "mlp.up_proj": "W0 gap",
        "mlp.down_proj": "gap",
    }


def test_cross_attention_is_a_group_of_its_own_and_its_cache_holds_the_image(facts):
    found = facts["llama-3.2-11b-vision"]
    groups = layer_groups(found)
    assert [list(layers) for layers, _ in groups][1] == [3, 8, 13, 18, 23, 28, 33, 38]
    width = 8 * 128 * 2 * 2  # heads, their width, keys and values, bytes
    assert found.kv_bytes(50) == (32 * 50 + 8 * 6404) * width
    assert found.image_trunk_bytes() == (5 + 1 + 6404) * 4096 * 2


def test_special_tokens_are_the_stand_ins(facts):
    for found in facts.values():
        tokenizer = found.backbone.processor.tokenizer
        known = tokenizer.get_vocab().values()
        assert {found.backbone.image_token_id, found.backbone.eos_token_id} <= set(known)
        assert found.vocabulary > len(tokenizer)


def test_backbones_made_here_have_facts(repository):
    found = backbone_facts("mini-blip2", repository / "config")
    assert (found.hidden_size, found.num_layers, found.image_tokens((32, 32))) == (128, 6, 8)


def test_unknown_names_are_listed(repository, tmp_path):
    with pytest.raises(GapinitError, match="backbone 'nope'.*expected one of: blip2-opt-2.7b"):
        backbone_facts("nope", repository / "config")
    with pytest.raises(GapinitError, match="no architecture in .*expected one of"):
        find_architecture("nope", repository / "config")
    with pytest.raises(GapinitError, match="--config-folder"):
        find_architecture("nope", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_type": "bert"}}, "model_type 'bert' is not supported"),
        ({"licence": 3, "unknown": 1}, "unknown key 'unknown'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, message):
    path = write_tiny("qwen2_vl", tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(GapinitError, match=message) as error:
        read_settings(path, Architecture)
    assert str(path) in str(error.value)


def test_what_transformers_refuses_is_named(tmp_path):
    path = write_tiny("qwen2_vl", tmp_path)
    content = yaml.safe_load(path.read_text())
    content["image_processor"]["class"] = "NoSuchProcessor"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(GapinitError, match="no class 'NoSuchProcessor'"):
        architecture_facts(read_settings(path, Architecture), str(path))

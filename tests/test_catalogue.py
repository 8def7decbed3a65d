"""The server's catalogue, its aliases, and the cache that start-up reads."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from recorded import capture

from llm_huggingchat import (
    BUILT_IN,
    CACHE,
    CATALOGUE_AGE,
    Catalogue,
    ModelInfo,
    aliases,
    keep_catalogue,
    load_catalogue,
    read_catalogue,
)

URL = "https://chat.example.org"

# The service's models as PROTOCOL.md lists them; what takes images is marked.
SERVICE = [
    ModelInfo("omni", multimodal=True, router=True),
    ModelInfo("meta-llama/Llama-3.3-70B-Instruct"),
    ModelInfo("meta-llama/Llama-3.1-8B-Instruct"),
    ModelInfo("meta-llama/Llama-4-Scout-17B-16E-Instruct", multimodal=True),
    ModelInfo("meta-llama/Llama-Guard-4-12B", multimodal=True),
    ModelInfo("Qwen/Qwen3.6-27B"),
    ModelInfo("Qwen/Qwen3-235B-A22B-Instruct-2507"),
    ModelInfo("Qwen/Qwen3-Coder-480B-A35B-Instruct"),
    ModelInfo("Qwen/Qwen3-VL-235B-A22B-Instruct", multimodal=True),
    ModelInfo("deepseek-ai/DeepSeek-V4-Pro"),
    ModelInfo("deepseek-ai/DeepSeek-V3.2"),
    ModelInfo("deepseek-ai/DeepSeek-R1-0528"),
    ModelInfo("deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
    ModelInfo("openai/gpt-oss-120b"),
    ModelInfo("openai/gpt-oss-20b"),
    ModelInfo("openai/gpt-oss-safeguard-20b"),
    ModelInfo("zai-org/GLM-5.2"),
    ModelInfo("zai-org/GLM-4.6V", multimodal=True),
    ModelInfo("moonshotai/Kimi-K2.6", multimodal=True),
    ModelInfo("moonshotai/Kimi-K2-Instruct-0905"),
    ModelInfo("MiniMaxAI/MiniMax-M3"),
    ModelInfo("google/gemma-4-31B-it", multimodal=True),
    ModelInfo("google/gemma-3-27b-it", multimodal=True),
    ModelInfo("CohereLabs/c4ai-command-a-03-2025"),
    ModelInfo("CohereLabs/command-a-translate-08-2025"),
    ModelInfo("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"),
    ModelInfo("microsoft/phi-4"),
    ModelInfo("swiss-ai/Apertus-70B-Instruct-2509"),
    ModelInfo("NousResearch/Hermes-3-Llama-3.1-70B"),
]
# Every short alias, and the models that it may mean: the first that is listed.
SHORT = {
    "hf-llama": "Llama-3.3-70B-Instruct Llama-3.1-8B-Instruct Llama-4-Scout-17B-16E-Instruct",
    "hf-qwen": "Qwen3.6-27B Qwen3-235B-A22B-Instruct-2507",
    "hf-deepseek": "DeepSeek-V4-Pro DeepSeek-V3.2 DeepSeek-R1-0528 DeepSeek-R1-Distill-Llama-70B",
    "hf-gpt-oss": "gpt-oss-120b gpt-oss-20b",
    "hf-glm": "GLM-5.2",
    "hf-kimi": "Kimi-K2.6 Kimi-K2-Instruct-0905",
    "hf-minimax": "MiniMax-M3",
    "hf-gemma": "gemma-4-31B-it gemma-3-27b-it",
    "hf-command": "c4ai-command-a-03-2025",
    "hf-nemotron": "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
    "hf-phi": "phi-4",
    "hf-apertus": "Apertus-70B-Instruct-2509",
    "hf-hermes": "Hermes-3-Llama-3.1-70B",
    "hf-omni": "omni",
    "hf-vision": "Llama-4-Scout-17B-16E-Instruct Kimi-K2.6 gemma-4-31B-it gemma-3-27b-it",
    "hf-coder": "Qwen3-Coder-480B-A35B-Instruct",
}


def shuffled(seed: int) -> list[ModelInfo]:
    models = list(SERVICE)
    random.Random(seed).shuffle(models)
    return models


def short_aliases(*models: ModelInfo | str) -> dict[str, str]:
    """The aliases other than a model's own name."""
    listed = [ModelInfo(model) if isinstance(model, str) else model for model in models]
    own = {f"hf-{model.name.lower()}" for model in listed}
    return {alias: id for alias, id in aliases(listed).items() if alias not in own}


# --- aliases --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(SERVICE, id="as listed"),
        pytest.param(SERVICE[::-1], id="backwards"),
        pytest.param(sorted(SERVICE, key=lambda model: model.id), id="by id"),
        pytest.param(sorted(SERVICE, key=lambda model: model.name), id="by name"),
        *(pytest.param(shuffled(seed), id=f"shuffled {seed}") for seed in range(20)),
    ],
)
def test_aliases_of_the_services_models_in_any_order(models):
    found = aliases(models)
    for alias, names in SHORT.items():
        first = next(model.id for model in models if model.name in names.split())
        assert found.pop(alias) == first, alias
    assert found == {
        f"hf-{model.name.lower()}": model.id for model in models if model.name != "omni"
    }


def test_distillation_of_a_deepseek_is_no_llama():
    assert short_aliases("deepseek-ai/DeepSeek-R1-Distill-Llama-70B") == {
        "hf-deepseek": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"
    }
    assert "hf-llama" not in short_aliases("NousResearch/Hermes-3-Llama-3.1-70B")


def test_family_is_at_home_with_the_organisation_that_publishes_it():
    home = "meta-llama/Llama-3.1-8B-Instruct"
    assert short_aliases("someone/Llama-9", home) == {"hf-llama": home}


@pytest.mark.parametrize(
    ("id", "alias"),
    [
        ("meta-llama/Llama-Guard-4-12B", "hf-llama"),
        ("zai-org/GLM-4.6V", "hf-glm"),
        ("CohereLabs/command-a-translate-08-2025", "hf-command"),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "hf-qwen"),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", "hf-qwen"),
        ("openai/gpt-oss-safeguard-20b", "hf-gpt-oss"),
    ],
)
def test_special_model_where_its_family_has_no_general_one(id, alias):
    assert short_aliases(id)[alias] == id


def test_vision_where_only_special_models_see():
    seeing = ModelInfo("Qwen/Qwen3-VL-235B-A22B-Instruct", multimodal=True)
    guard = ModelInfo("meta-llama/Llama-Guard-4-12B", multimodal=True)
    assert short_aliases(guard, seeing)["hf-vision"] == seeing.id
    assert "hf-vision" not in short_aliases(guard, SERVICE[0])


def test_no_coder_no_vision_no_router_no_alias():
    assert short_aliases("microsoft/phi-4") == {"hf-phi": "microsoft/phi-4"}


def test_unlisted_model_has_only_its_own_name():
    hidden = ModelInfo("Qwen/Qwen3-Coder-1", multimodal=True, unlisted=True)
    assert aliases([hidden]) == {"hf-qwen3-coder-1": "Qwen/Qwen3-Coder-1"}


def test_of_two_models_with_one_name_the_first_has_the_alias():
    first, second = ModelInfo("a/Same-1"), ModelInfo("b/Same-1")
    assert aliases([first, second])["hf-same-1"] == "a/Same-1"


# --- the server's catalogue -----------------------------------------------------------


def test_recorded_catalogue():
    (exchange,) = capture("models")
    models = read_catalogue(exchange.json())
    assert len(models) == 14
    assert models[0] == ModelInfo(
        "omni",
        multimodal=True,
        tools=True,
        router=True,
        description="Automatically routes your messages to the best model for your request.",
    )
    by_id = {model.id: model for model in models}
    assert by_id["Qwen/Qwen3-VL-235B-A22B-Instruct"].multimodal
    assert not by_id["meta-llama/Llama-3.3-70B-Instruct"].multimodal
    found = aliases(models)
    assert found["hf-llama"] == "meta-llama/Llama-3.3-70B-Instruct"
    assert found["hf-vision"] == "meta-llama/Llama-4-Scout-17B-16E-Instruct"


def test_catalogue_without_superjson_around_it():
    assert read_catalogue([{"id": "a/b"}]) == (ModelInfo("a/b"),)


def test_entries_that_make_no_sense_are_passed_over():
    entries = [
        None,
        5,
        "a/b",
        {},
        {"id": None},
        {"id": 5},
        {"id": ""},
        {"id": "a b"},
        {"id": "a\x1b[31m/b"},
        {"id": "a//b"},
        {"id": "é/b"},
        {"id": "a/b", "multimodal": "yes", "supportsTools": 1, "description": ["d"]},
        {"id": "a/b", "multimodal": True},
        {"id": "c/d", "description": "two\nlines\x1b[31m", "unlisted": True},
    ]
    assert read_catalogue({"json": entries}) == (
        ModelInfo("a/b"),
        ModelInfo("c/d", unlisted=True, description="two lines[31m"),
    )


@pytest.mark.parametrize("value", [None, 5, "models", {}, [], {"json": None}, {"json": [{}]}])
def test_catalogue_without_models(value):
    with pytest.raises(ValueError, match="no model in the catalogue"):
        read_catalogue(value)


# --- the cache ------------------------------------------------------------------------


def test_without_a_cache_the_built_in_models_are_there():
    assert load_catalogue(URL) == Catalogue(BUILT_IN, None)
    assert Catalogue().is_old
    assert {"hf-llama", "hf-qwen", "hf-omni", "hf-vision", "hf-coder"} <= aliases(BUILT_IN).keys()


def test_built_in_models_are_the_services():
    assert {model.id for model in BUILT_IN} == {model.id for model in SERVICE}
    assert {model.id for model in BUILT_IN if model.router} == {"omni"}
    assert {model.id for model in SERVICE if model.multimodal} == {
        model.id for model in BUILT_IN if model.multimodal
    }


def test_cache_keeps_the_models_of_each_server():
    (exchange,) = capture("models")
    models = read_catalogue(exchange.json())
    keep_catalogue(URL, models)
    keep_catalogue("http://127.0.0.1:1", models[:1])
    assert load_catalogue(URL).models == models
    assert load_catalogue("http://127.0.0.1:1").models == models[:1]
    assert load_catalogue("https://other.example.org").models == BUILT_IN
    assert not load_catalogue(URL).is_old


@pytest.mark.parametrize(
    ("age", "old"),
    [(0.0, False), (CATALOGUE_AGE / 2, False), (CATALOGUE_AGE * 2, True), (-CATALOGUE_AGE, True)],
)
def test_cache_is_old_after_a_day_or_from_the_future(age, old):
    assert Catalogue(BUILT_IN, time.time() - age).is_old is old


MODELS = [{"id": "a/b"}]
BROKEN_SERVERS: list[Any] = [
    None,
    [],
    {URL: None},
    {URL: []},
    {URL: {"models": MODELS}},
    {URL: {"models": MODELS, "time": "now"}},
    {URL: {"models": MODELS, "time": None}},
    {URL: {"models": MODELS, "time": 10**400}},
    {URL: {"models": [], "time": 1}},
    {URL: {"models": {"a": "b"}, "time": 1}},
    {URL: {"time": 1}},
]
BROKEN_CACHES = [
    *("", "{", "[" * 100_000, "\0", "null", "5", "[]", "{}"),
    *(json.dumps({"servers": servers}) for servers in BROKEN_SERVERS),
]


@pytest.mark.parametrize("content", BROKEN_CACHES, ids=lambda content: content[:60])
def test_broken_cache_is_as_none_and_is_mended(content, user_path):
    (user_path / CACHE).write_text(content)
    assert load_catalogue(URL) == Catalogue()
    keep_catalogue(URL, [ModelInfo("a/b")])
    assert load_catalogue(URL).models == (ModelInfo("a/b"),)


def test_cache_that_is_not_text_is_as_none(user_path):
    (user_path / CACHE).write_bytes(b"\xff\xfe\x00")
    assert load_catalogue(URL) == Catalogue()


def test_cache_that_cannot_be_read_is_as_none(user_path):
    (user_path / CACHE).mkdir()
    assert load_catalogue(URL) == Catalogue()

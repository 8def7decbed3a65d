"""The server's catalogue, its aliases, and the cache that start-up reads."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from recorded import capture

from llm_huggingchat import (
    BUILT_IN,
    CACHE,
    Catalogue,
    ModelInfo,
    aliases,
    keep_catalogue,
    limits,
    load_catalogue,
    read_catalogue,
)

URL = "https://chat.example.org"

(SERVICE,) = (read_catalogue(exchange.json()) for exchange in capture("models_service"))

# What a person means by the name of each family that the service has, and why not the others.
SHORT = {
    "hf-apertus": "swiss-ai/Apertus-v1.5-70B",
    "hf-autoglm": "zai-org/AutoGLM-Phone-9B-Multilingual",
    "hf-aya": "CohereLabs/aya-expanse-32b",  # not a tiny one, not the one that sees
    "hf-bielik": "speakleash/Bielik-11B-v3.0-Instruct",
    "hf-bonsai": "prism-ml/Ternary-Bonsai-27B-gguf",
    "hf-cogito": "deepcogito/cogito-671b-v2.1",
    "hf-command": "CohereLabs/command-a-plus-05-2026-bf16",
    "hf-deepseek": "deepseek-ai/DeepSeek-V4-Pro-0813",  # not dated behind, not Flash
    "hf-ernie": "baidu/ERNIE-4.5-VL-424B-A47B-Base-PT",  # there is no other
    "hf-gemma": "google/gemma-4-31B-it",  # not from pearl-ai
    "hf-glm": "zai-org/GLM-5.2",
    "hf-gpt-oss": "openai/gpt-oss-120b",
    "hf-hermes": "NousResearch/Hermes-3-Llama-3.1-70B",
    "hf-hy": "tencent/Hy3",
    "hf-inkling": "thinkingmachines/Inkling",
    "hf-kimi": "moonshotai/Kimi-K3",
    "hf-ling": "inclusionAI/Ling-2.6-1T",
    "hf-llama": "meta-llama/Llama-4-Scout-17B-16E-Instruct",  # Maverick is there as FP8 only
    "hf-lunaris": "Sao10K/L3-8B-Lunaris-v1",
    "hf-mimo": "XiaomiMiMo/MiMo-V2.5-Pro",
    "hf-minimax": "MiniMaxAI/MiniMax-M3",
    "hf-muse": "meta-models/Muse-Glimmer-30B",
    "hf-nemotron": "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16",  # the newest
    "hf-phi": "microsoft/phi-4",
    "hf-qwen": "Qwen/Qwen3.8-2.4T-A95B",  # not Qwen-SEA-LION-v4
    "hf-step": "stepfun-ai/Step-3.7-Flash",
    "hf-stheno": "Sao10K/L3-8B-Stheno-v3.2",
    "hf-wizardlm": "alpindale/WizardLM-2-8x22B",
    "hf-omni": "omni",
    "hf-vision": "Qwen/Qwen3.5-397B-A17B",
    "hf-coder": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
}


def short_aliases(*models: ModelInfo | str) -> dict[str, str]:
    """The aliases other than a model's own name."""
    listed = [ModelInfo(model) if isinstance(model, str) else model for model in models]
    own = {f"hf-{model.name.lower()}" for model in listed}
    return {alias: id for alias, id in aliases(listed).items() if alias not in own}


# --- aliases --------------------------------------------------------------------------


def test_aliases_of_the_services_models():
    own = {f"hf-{model.name.lower()}": model.id for model in SERVICE}
    assert len(own) == len(SERVICE) == 137
    assert aliases(SERVICE) == own | SHORT


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("zai-org/GLM-5.2", "zai-org/GLM-5"),
        ("zai-org/GLM-5", "zai-org/GLM-4.7"),
        ("zai-org/GLM-4.10", "zai-org/GLM-4.9"),
        ("zai-org/GLM-4.6", "zai-org/GLM-4.7-FP8"),
        ("zai-org/GLM-4.6", "zai-org/GLM-4.6V"),
        ("zai-org/GLM-4.5", "zai-org/GLM-4.5-Air"),
        ("zai-org/GLM-4.7-Flash", "zai-org/GLM-4.6"),
        ("zai-org/GLM-4.6-FP8", "zai-org/GLM-4.6V"),
        ("deepseek-ai/DeepSeek-V4-Pro-0813", "deepseek-ai/DeepSeek-V4-Pro"),
        ("deepseek-ai/DeepSeek-V4-Pro", "deepseek-ai/DeepSeek-V4-Flash-0731"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2-Exp"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-R1-0528"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B-Thinking-2507"),
        ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
        ("Qwen/Qwen3.8-2.4T-A95B", "Qwen/Qwen3.8-900B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct"),
        ("google/gemma-4-31B-it", "google/gemma-4-26B-A4B-it"),
        ("google/gemma-3-27b-it", "google/gemma-3n-E4B-it"),
        ("google/gemma-3-4b-it", "pearl-ai/Gemma-4-31B-it-pearl"),
        ("moonshotai/Kimi-K2-Instruct-0905", "moonshotai/Kimi-K2-Instruct"),
        ("meta-llama/Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Scout-17B-16E"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-Guard-4-12B"),
        ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/c4ai-command-r7b-12-2024"),
        ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/command-a-translate-08-2025"),
        ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/command-a-reasoning-08-2025"),
        ("microsoft/phi-4", "microsoft/phi-4-mini"),
        ("mistralai/Mistral-Large-3", "mistralai/Mistral-Small-3-24B"),
        ("nvidia/Llama-3.3-Nemotron-Super-49B", "nvidia/Nemotron-Nano-9B"),
    ],
)
def test_of_two_models_of_a_family(better, worse):
    (alias,) = (alias for alias, id in short_aliases(better).items() if id == better)
    assert short_aliases(better, worse)[alias] == better
    assert short_aliases(worse, better)[alias] == better


def test_many_models_are_quick():
    models = [ModelInfo(f"org{n % 9}/Name-{n}.{n % 7}-{n}B", n % 2 == 0) for n in range(20_000)]
    begun = time.process_time()
    aliases(models)
    assert time.process_time() - begun < 5


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


def test_of_two_models_with_one_name_one_has_the_alias_in_any_order():
    first, second = ModelInfo("a/Same-1"), ModelInfo("b/Same-1")
    hidden = ModelInfo("0/Same-1", unlisted=True)
    for models in itertools.permutations([first, second, hidden]):
        assert aliases(models)["hf-same-1"] == "a/Same-1"


def test_no_model_of_others_takes_the_name_of_a_family():
    ours = "google/gemma-4-31B-it"
    assert aliases([ModelInfo("x/Gemma"), ModelInfo(ours)])["hf-gemma"] == ours
    assert aliases([ModelInfo("x/omni"), ModelInfo("r", router=True)])["hf-omni"] == "r"


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
    assert found["hf-llama"] == "meta-llama/Llama-4-Scout-17B-16E-Instruct"
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
    assert tuple(replace(model, description="") for model in SERVICE) == BUILT_IN
    assert sum(model.artifacts for model in BUILT_IN) == 43


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
    [
        (0.0, False),
        (limits.catalogue_age / 2, False),
        (limits.catalogue_age * 2, True),
        (-limits.catalogue_age, True),
    ],
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

"""The server's catalogue, and the aliases of its models."""

import re
import time

import llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import capture

import llm_huggingchat as plugin
from pure.cuts import SMALL, any_json

SERVICE = plugin.read_catalogue(capture("models_service")[0].json()["json"]).models

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


def short_aliases(*models: plugin.ModelInfo | str) -> dict[str, str]:
    """The aliases other than a model's own name."""
    listed = [plugin.ModelInfo(model) if isinstance(model, str) else model for model in models]
    own = {f"hf-{model.name.lower()}" for model in listed}
    return {alias: id for alias, id in plugin.aliases(listed).items() if alias not in own}


def test_aliases_of_the_services_models():
    own = {f"hf-{model.name.lower()}": model.id for model in SERVICE}
    assert len(own) == len(SERVICE) == 137
    assert plugin.aliases(SERVICE) == plugin.aliases(SERVICE[::-1]) == own | SHORT


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("zai-org/GLM-4.10", "zai-org/GLM-4.9"),
        ("zai-org/GLM-4.5", "zai-org/GLM-4.5-Air"),
        ("zai-org/GLM-4.7-Flash", "zai-org/GLM-4.6"),
        ("zai-org/GLM-4.6-FP8", "zai-org/GLM-4.6V"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2-Exp"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-Thinking-2507"),
        ("google/gemma-3-27b-it", "google/gemma-3n-E4B-it"),
        ("meta-llama/Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Scout-17B-16E"),
        ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/c4ai-command-r7b-12-2024"),
        ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/command-a-translate-08-2025"),
        ("microsoft/phi-4", "microsoft/phi-4-mini"),
        ("mistralai/Mistral-Large-3", "mistralai/Mistral-Small-3-24B"),
    ],
)
def test_of_two_models_of_a_family(better, worse):
    (alias,) = (alias for alias, id in short_aliases(better).items() if id == better)
    assert short_aliases(better, worse)[alias] == better
    assert short_aliases(worse, better)[alias] == better


@pytest.mark.parametrize(
    ("id", "alias"),
    [
        ("meta-llama/Llama-Guard-4-12B", "hf-llama"),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", "hf-qwen"),
        ("openai/gpt-oss-safeguard-20b", "hf-gpt-oss"),
    ],
)
def test_special_model_where_its_family_has_no_general_one(id, alias):
    assert short_aliases(id)[alias] == id
    assert ("hf-llama" in short_aliases(id)) == (alias == "hf-llama")


PIECES = ["a/", "b/", "qwen", "glm", "llama", "-", "v", "3", "4.5", "-70b", "-fp8", "+", "% é"]
MODELS = st.builds(
    plugin.ModelInfo,
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    multimodal=st.booleans(),
    router=st.booleans(),
    unlisted=st.booleans(),
)


@given(st.lists(MODELS, unique_by=lambda model: model.id, max_size=6), st.randoms())
def test_order_of_the_list_changes_no_alias(models, random):
    found = plugin.aliases(models)
    random.shuffle(models)
    assert plugin.aliases(models) == found
    assert set(found.values()) <= {model.id for model in models}


def test_unlisted_model_has_only_its_own_alias():
    hidden = plugin.ModelInfo("Qwen/Qwen9-900B", multimodal=True, unlisted=True)
    assert short_aliases("Qwen/Qwen3-8B", hidden) == {"hf-qwen": "Qwen/Qwen3-8B"}


def test_recorded_catalogue():
    catalogue = plugin.read_catalogue(capture("models")[0].json()["json"])
    assert len(catalogue.models) == 14
    omni = catalogue.models[0]
    assert (omni.id, omni.router, omni.multimodal, omni.tools) == ("omni", True, True, True)
    assert omni.description.startswith("Automatically routes your messages")


def test_built_in_models_are_the_services():
    for built_in, served in zip(plugin.BUILT_IN, SERVICE, strict=True):
        assert (built_in.id, built_in.abilities) == (served.id, served.abilities)
    assert sum(model.artifacts for model in plugin.BUILT_IN) == 43
    assert plugin.Catalogue().models == plugin.BUILT_IN


@pytest.mark.parametrize(
    "id",
    ["org/with @ and %2F", "[draft] x", "模型/通义", "a//b", "/", "x" * 200, "می\u200cخواهم", "-m"],
)
def test_every_id_that_a_server_lists_can_be_used(id):
    catalogue = plugin.read_catalogue([{"id": id}])
    plugin.keep_catalogue("https://huggingface.co/chat", catalogue.models)
    found = plugin.aliases(catalogue.models)
    assert not re.search(r"\s", "".join(found))
    for name in (f"huggingchat/{id}", *found):
        assert llm.get_model(name).model_id == f"huggingchat/{id}"
        assert llm.get_async_model(name).model_id == f"huggingchat/{id}"


@pytest.mark.parametrize("id", ["a\x1b[31m/b", "a\u202eb", "half \ud83c", "x" * 201, " ", None])
def test_model_that_cannot_be_used_is_left_out(id):
    assert plugin.read_catalogue([{"id": "a/b"}, {"id": id}]).models == (plugin.ModelInfo("a/b"),)
    with pytest.raises(ValueError, match="no entry has a usable id"):
        plugin.read_catalogue([{"id": id}])


JSON = any_json(SMALL | st.text(max_size=5), st.text(max_size=5))
ENTRIES = st.fixed_dictionaries({"id": JSON | st.text("a-/.1V ", max_size=8)}) | JSON


@given(JSON | st.lists(ENTRIES, max_size=5))
def test_any_json_is_a_catalogue_or_told(value):
    try:
        models = plugin.read_catalogue(value).models
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert models
    assert set(plugin.aliases(models).values()) == {model.id for model in models}


def test_catalogue_is_old_after_a_day_or_from_the_future():
    for age, old in ((0.0, False), (0.5, False), (2.0, True), (-1.0, True)):
        found = plugin.Catalogue(plugin.BUILT_IN, time.time() - age * plugin.limits.catalogue_age)
        assert found.is_old is old, age
    assert plugin.Catalogue().is_old

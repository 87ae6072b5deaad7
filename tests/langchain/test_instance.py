"""The model object itself: settings, their origins, copies, secrets, cost. No server is running."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.language_models import ModelProfile
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from enginekit import config
from enginekit.errors import ConfigError, UnknownSetting
from enginekit.kit.keywords import CHAT_FIELDS, SAMPLING
from enginekit.langchain import (
    ChatEngineKit,
    EngineKitChat,
    EngineKitEmbeddings,
    EngineKitLLM,
    EngineKitRerank,
)

CLASSES = [EngineKitChat, EngineKitLLM, EngineKitEmbeddings, EngineKitRerank]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_of_the_configuration_is_a_field(cls: Any) -> None:
    assert set(config.KEYS) - {"embed_model"} <= set(cls.model_fields)


def test_every_sampling_and_request_field_is_a_field() -> None:
    assert set(SAMPLING) | set(CHAT_FIELDS) <= set(EngineKitChat.model_fields)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_keyword_is_refused_with_the_nearest(cls: Any) -> None:
    with pytest.raises(UnknownSetting, match="did you mean 'base_url'"):
        cls(bas_url="http://x")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("num_ctx", "context_window"),
        ("num_predict", "max_tokens"),
        ("extra_body", "engine_options"),
    ],
)
def test_what_other_libraries_call_it_is_known(theirs: str, ours: str) -> None:
    with pytest.raises(UnknownSetting, match=f"{theirs!r}; did you mean {ours!r}"):
        EngineKitChat(**{theirs: 1})


def test_a_name_like_none_of_ours_is_not_taken_for_a_slip() -> None:
    with pytest.raises(UnknownSetting) as caught:
        EngineKitChat(stream_usage=True)  # type: ignore[call-arg]
    assert "did you mean" not in str(caught.value)
    assert "always asked for" in str(caught.value.hint)
    with pytest.raises(UnknownSetting) as caught:
        EngineKitChat(best_of=2)  # type: ignore[call-arg]
    assert "did you mean" not in str(caught.value)
    assert "engine_options" in str(caught.value.hint)


def test_a_wrong_type_names_the_field() -> None:
    with pytest.raises(ValidationError, match="temperature"):
        EngineKitChat(temperature="hot")  # type: ignore[arg-type]


def test_model_name_is_another_name_for_model() -> None:
    assert EngineKitChat(model_name="m").model == "m"  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="disagree"):
        EngineKitChat(model="a", model_name="b")  # type: ignore[call-arg]


def test_several_engines_in_every_spelling() -> None:
    assert EngineKitChat(engines=["vllm", "ollama"]).engine == "vllm,ollama"  # type: ignore[call-arg]
    assert EngineKitChat(engine=["vllm", "ollama"]).engine == "vllm,ollama"  # type: ignore[arg-type]


def test_what_the_environment_says_is_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key from the environment would count as given in code, and origins would lie."""
    monkeypatch.setenv("ENGINEKIT_ENGINE", "vllm")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("ENGINEKIT_API_KEY", "secret")
    monkeypatch.setenv("ENGINEKIT_MODEL", "m")
    model = EngineKitChat()
    assert (model.engine, model.model) == ("vllm", "m")
    assert model.client.settings == {}
    layers = {row.name: row.layer for row in model.client.config.rows()}
    assert layers == dict.fromkeys(("engine", "base_url", "api_key", "model"), "environment")


def test_another_engine_does_not_inherit_the_environments_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINEKIT_ENGINE", "vllm")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", "http://127.0.0.1:8000")
    swapped = EngineKitChat().configurable_fields(engine=ConfigurableField(id="engine"))
    chosen, _ = swapped.prepare({"configurable": {"engine": "ollama"}})
    assert isinstance(chosen, EngineKitChat)
    assert chosen.engine == "ollama"
    assert chosen.profile_origins["max_input_tokens"] == "the smallest window ollama starts with"
    assert chosen.client.config.for_engine("base_url", "ollama") is None


def test_rebuilding_from_attributes_does_not_switch_streaming_off() -> None:
    model = EngineKitChat(model="m").configurable_fields(model=ConfigurableField(id="model"))
    chosen, _ = model.prepare({"configurable": {"model": "n"}})
    assert isinstance(chosen, EngineKitChat)
    assert chosen._should_stream(async_api=False, stream=True)


def test_traces_are_not_filled_with_what_nobody_set() -> None:
    assert (
        repr(EngineKitChat(model="m", temperature=0)) == "EngineKitChat(model='m', temperature=0.0)"
    )
    assert "max_input_tokens" in repr(EngineKitChat(profile={"max_input_tokens": 3}))


def test_constructing_touches_neither_network_nor_files(monkeypatch: pytest.MonkeyPatch) -> None:
    EngineKitChat(model="llama3.1", engine="vllm")  # imports, and the catalog

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("I/O")

    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr("builtins.open", never)
    monkeypatch.setattr("pathlib.Path.open", never)
    for cls in CLASSES:
        made = cls(model="llama3.1", engine="vllm", api_key="k")
        assert made._state.client is None


def test_keys_do_not_show() -> None:
    model = EngineKitChat(api_key="s3cret", model="m")  # type: ignore[arg-type]
    assert model.client.settings["api_key"] == "s3cret"
    shown = repr(model) + str(model._identifying_params) + str(model.asdict())
    assert "s3cret" not in shown + str(model._get_ls_params())


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_used_instance_can_be_copied(cls: Any, clone: Any) -> None:
    model = cls(model="m", timeout=3)
    first = model.client
    twin = clone(model)
    assert twin == model
    assert twin.client is not first
    assert twin.client.settings == first.settings


def test_changing_a_setting_takes_effect() -> None:
    model = EngineKitChat(model="m", engine="vllm")
    before = model.client
    model.engine = "ollama"
    assert model.client is not before
    assert model.client.settings["engine"] == "ollama"
    changed = model.model_copy(update={"engine": "llamacpp"})
    assert changed.client.settings["engine"] == "llamacpp"


def test_everything_that_changes_the_answer_identifies_the_model() -> None:
    model = EngineKitChat(
        model="m", engine="vllm", base_url="http://x", temperature=0, stop=["a"], seed=1
    )
    assert model._identifying_params == {
        "model": "m",
        "engine": "vllm",
        "base_url": "http://x",
        "temperature": 0,
        "stop": ["a"],
        "seed": 1,
    }
    one = EngineKitChat(model="m", engine_options={"a": 1})
    other = EngineKitChat(model="m", engine_options={"a": 2})
    assert one._get_llm_string() != other._get_llm_string()


def test_a_project_file_changes_the_cache_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = set()
    for engine in ("vllm", "ollama"):
        (tmp_path / "enginekit.toml").write_text(f'engine = "{engine}"')
        keys.add(EngineKitChat(model="m")._get_llm_string())
    assert len(keys) == 2


def test_tracing_parameters_follow_the_call() -> None:
    model = EngineKitChat(model="m", temperature=0.5, max_tokens=9, stop="a")
    assert model._get_ls_params() == {
        "ls_provider": "enginekit",
        "ls_model_type": "chat",
        "ls_model_name": "m",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["a"],
    }
    assert EngineKitChat(engine="vllm")._get_ls_params()["engine"] == "vllm"  # type: ignore[typeddict-item]
    params = model._get_ls_params(stop=["b"], model="n", temperature=0, max_tokens=1)
    assert params["ls_model_name"] == "n"
    assert (params["ls_temperature"], params["ls_max_tokens"]) == (0, 1)
    assert params["ls_stop"] == ["b"]


def test_before_the_first_call_the_profile_promises_the_least() -> None:
    unknown = EngineKitChat(model="m")
    assert unknown.profile is not None
    assert unknown.profile["max_input_tokens"] == 1024
    assert "smallest" in unknown.profile_origins["max_input_tokens"]
    assert set(unknown.profile_origins) == set(unknown.profile)
    assert set(unknown.profile) <= set(ModelProfile.__annotations__)
    assert all(unknown.profile_origins.values())
    for feature in ("image_inputs", "audio_inputs", "reasoning_output", "pdf_inputs"):
        assert unknown.profile[feature] is False  # type: ignore[literal-required]


def test_the_catalog_fills_the_profile_of_a_model_that_it_knows() -> None:
    model = EngineKitChat(engine="vllm", model="gemma3")
    assert model.profile is not None
    assert model.profile["name"] == "gemma3"
    assert model.profile_origins["name"] == "EngineKitChat(...) model="
    assert model.profile["image_inputs"] is True
    assert model.profile["reasoning_output"] is False
    assert "catalog" in model.profile_origins["image_inputs"]
    assert model.profile["max_input_tokens"] == 2048  # and not the 131,072 it was trained for
    asked = EngineKitChat(engine="ollama", model="llama3.1", context_window=8192)
    assert asked.profile is not None
    assert asked.profile["max_input_tokens"] == 8192


def test_a_bad_variable_shows_in_the_first_call_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINEKIT_TIMEOUT", "soon")
    model = EngineKitChat(engine="vllm", model="m")
    assert model.profile is not None
    assert model.profile["max_input_tokens"] > 0
    with pytest.raises(ConfigError, match="ENGINEKIT_TIMEOUT"):
        model.invoke("hi")


def test_agents_are_told_to_force_a_tool_for_structured_output() -> None:
    """`create_agent` takes True as leave to send tools and a schema in one request."""
    for engine in (None, "vllm", "llamacpp", "ollama"):
        profile = EngineKitChat(model="m", engine=engine).profile
        assert profile is not None
        assert profile["structured_output"] is False


def test_a_profile_given_by_the_caller_wins() -> None:
    model = EngineKitChat(model="m", profile={"max_input_tokens": 7})
    assert model.profile == {"max_input_tokens": 7}
    assert model.profile_origins == {}


def test_bind_tools_checks_its_keywords_and_sends_no_empty_list() -> None:
    model = EngineKitChat(model="m")
    assert model.bind_tools([], tool_choice="any").kwargs == {}  # type: ignore[attr-defined]
    with pytest.raises(UnknownSetting, match="did you mean 'temperature'"):
        model.bind_tools([], temprature=1)


def test_the_alias_is_the_class() -> None:
    assert ChatEngineKit is EngineKitChat


def test_importing_the_package_loads_no_framework() -> None:
    code = (
        "import sys, enginekit.langchain as l; assert 'langchain_core' not in sys.modules; "
        "l.EngineKitChat(model='m'); "
        "bad = {'openai', 'langchain_openai', 'httpx', 'llama_index', 'torch'} & set(sys.modules); "
        "assert not bad - {'httpx'}, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

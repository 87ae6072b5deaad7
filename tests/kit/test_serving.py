"""A model named by the server that has it: each kind of answer gives as much as it is worth."""

from __future__ import annotations

import pytest

from enginekit import plan
from enginekit.errors import ConfigError, ModelNotFound
from enginekit.facts.engine import Capability, ModelCard, ServerFacts
from enginekit.hardware import preset
from enginekit.kit.planning import plan as planned
from enginekit.kit.serving import _card, _spec, is_address, is_file_address, seeing
from enginekit.launch.embedded import EmbeddedSpec, acquire
from tests.catalog.test_ollama_show import recorded
from tests.support import models

URL = "http://127.0.0.1:1"


@pytest.mark.embedded
def test_a_running_llama_server_names_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.smollm2()
    with acquire(EmbeddedSpec(model_path=path, context=2048, slots=1), budget=90) as lease:
        monkeypatch.setenv("ENGINEKIT_API_KEY", lease.api_key or "")
        monkeypatch.setenv("ENGINEKIT_BASE_URL", lease.base_url)
        found = plan(lease.base_url, hardware="cpu-16")
    assert found.weights_method == "file"
    assert found.policy == "context"
    assert found.devices[0].terms["weights"].expected == 96_576_768


@pytest.mark.parametrize(
    ("images", "audio", "expected"),
    [
        ("native", "none", True),
        ("none", "native", True),
        ("none", "none", False),
        ("none", None, None),
        (None, None, None),
    ],
)
def test_whether_a_projector_is_loaded_is_what_the_server_takes(
    images: str | None, audio: str | None, expected: bool | None
) -> None:
    told = {
        feature: Capability(support=support, evidence="probed")
        for feature, support in (("images", images), ("audio", audio))
        if support is not None
    }
    assert seeing(ServerFacts(capabilities=told), "m") is expected  # type: ignore[arg-type]


def test_ollamas_own_answer_is_described() -> None:
    show = recorded("show")
    card = ModelCard(id="m:latest", extra={"show": show, "size": 1_000_000_000})
    spec = _spec(ServerFacts(models=(card,)), card, URL)
    assert spec is not None
    assert spec.architecture == show["model_info"]["general.architecture"]
    assert spec.layers


def test_vllms_root_is_a_name_that_the_catalog_knows() -> None:
    card = ModelCard(id="chat", extra={"root": "Qwen/Qwen3-8B"})
    spec = _spec(ServerFacts(models=(card,)), card, URL)
    assert spec is not None
    assert spec.name == "qwen3-8b"


def test_mere_sizes_give_a_range_and_say_so() -> None:
    meta = {"n_params": 8_000_000_000, "size": 4_900_000_000, "n_vocab": 32000, "n_embd": 4096,
            "n_ctx_train": 8192}  # fmt: skip
    card = ModelCard(id="mine.gguf", extra=meta)
    spec = _spec(ServerFacts(models=(card,), extra={"model_path": "/not/here.gguf"}), card, URL)
    assert spec is not None
    found = planned(spec, hardware=preset("rtx4090"))
    assert any("unknown attention layout" in note for note in found.notes)


def test_a_server_that_says_nothing_is_no_guess() -> None:
    card = ModelCard(id="mystery")
    assert _spec(ServerFacts(models=(card,)), card, URL) is None


def test_of_several_models_one_has_to_be_named() -> None:
    facts = ServerFacts(models=(ModelCard(id="one"), ModelCard(id="two", aliases=("zwei",))))
    with pytest.raises(ModelNotFound, match="one, two") as refused:
        _card(facts, "", URL)
    assert f"{URL}#NAME" in str(refused.value.hint)
    assert _card(facts, "zwei", URL).id == "two"


@pytest.mark.parametrize("name", ["http://h:1", "https://h/v1#m", "unix:///run/x"])
def test_addresses_are_told_from_names(name: str) -> None:
    assert is_address(name)
    assert not is_address(name.partition("://")[2])
    assert not is_address(f"hf://{name}")


def test_an_address_that_cannot_be_read_is_a_clear_error():
    with pytest.raises(ConfigError, match="no address"):
        is_file_address("https://[::1/x.gguf")

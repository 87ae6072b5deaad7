"""A model named by the server that has it: each kind of answer gives as much as it is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginekit import plan
from enginekit.errors import ConfigError, ModelNotFound
from enginekit.facts.engine import Capability, ModelCard, ServerFacts
from enginekit.hardware import preset
from enginekit.kit.planning import plan as planned
from enginekit.kit.serving import _card, _here, _running, _spec, is_address, is_file_address, seeing
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
    assert (found.context, found.users, found.context_reason) == (2048, 1, "as the server runs")
    assert f"-m {path}" in found.command


@pytest.mark.embedded
def test_the_slots_of_a_running_server_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.scripted_gguf()
    with acquire(EmbeddedSpec(model_path=path, context=1024, slots=2), budget=90) as lease:
        monkeypatch.setenv("ENGINEKIT_API_KEY", lease.api_key or "")
        monkeypatch.setenv("ENGINEKIT_BASE_URL", lease.base_url)
        found = plan(lease.base_url, hardware="cpu-16")
        asked = plan(lease.base_url, hardware="cpu-16", context=4096)
        other = plan(lease.base_url, hardware="cpu-16", engine="ollama")
    assert (found.context, found.users) == (1024, 2)
    assert (asked.context, asked.users, asked.context_reason) == (4096, 2, "as asked")
    assert other.users == 1
    assert other.context_reason != "as the server runs"


def test_of_four_slots_nobody_can_say_whether_they_share_a_cache() -> None:
    """llama-server takes four with one cache by itself, and four with a cache each for `-np 4`."""
    card = ModelCard(id="m", context_window=2048)
    facts = ServerFacts(models=(card,), slots=4, extra={"slots_may_share": True})
    window, users, note = _running(facts, card)
    assert (window, users) == (2048, 1)
    assert "--users 4" in note
    assert _running(ServerFacts(slots=2), card) == (2048, 2, "")
    assert _running(ServerFacts(slots=2), replace(card, loaded=False)) == (None, 1, "")


def test_a_routers_model_is_the_file_of_its_childs_command_line() -> None:
    """Recorded of b11434 `--models-dir`: the arguments are in the listing, the file nowhere else."""
    file = models.scripted_gguf()
    args = ["/bin/llama-server", "--port", "0", "--alias", "smollm2", "--model", str(file)]
    card = ModelCard(
        id="smollm2", loaded=False, extra={"status": {"value": "unloaded", "args": args}}
    )
    facts = ServerFacts(models=(card,), extra={"router": True})
    spec = _spec(facts, card, URL)
    assert spec is not None
    assert spec.params_total < 10_000_000
    assert _here(facts, card) == str(file)


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

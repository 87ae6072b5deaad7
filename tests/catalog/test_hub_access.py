"""Who may read a repository, how it is named, and which of its files are the model.

The words of refusal are the Hub's own, as its Python client's issues show them (huggingface_hub
issues 1202, 2847; ml-explore/mlx-examples 759; google/gemma-2-2b-it at city96/ComfyUI_ExtraModels 99).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import _hub, describe_repo, describe_url, hub
from enginekit.catalog._hub_names import HubName, hub_name, is_hub
from enginekit.catalog.sources import parse_hub
from enginekit.errors import ConfigError, DownloadError, ModelFileError, ModelNotFound
from enginekit.kit import planning
from tests.catalog.test_hub import REPO, SMALL, WEIGHTS, gguf_file, ranged, repository
from tests.support.server import Reply, Server, json_reply

GATED = (
    f"Access to model {REPO} is restricted. You must have access to it and be authenticated to "
    "access it. Please log in."
)


def plain(text: str, status: int) -> Reply:
    """A refusal of `/resolve/`, whose body is the sentence itself."""
    return Reply(status=status, body=[text.encode()], framing="length")


@pytest.fixture
def users(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The loopback hub as the one that the user's environment names, without a token."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    return server


# --------------------------------------------------------------------------------- refusals


def test_a_repository_that_is_private_or_missing_asks_for_a_token_in_the_hubs_words(users: Server):
    users.always(json_reply({"error": "Invalid username or password."}, status=401))
    with pytest.raises(
        ModelNotFound, match=r"answered 401: Invalid username or password\."
    ) as told:
        planning.model_of(f"hf://{REPO}")
    assert str(told.value.hint).startswith("set HF_TOKEN")


def test_a_token_that_is_wrong_is_not_asked_for_again(server: Server):
    """The Hub refuses even public repositories to a token that it does not know."""
    words = "Invalid credentials in Authorization header"
    server.always(json_reply({"error": words}, status=401))
    with pytest.raises(ModelNotFound, match=words) as told:
        describe_repo(REPO, endpoint=server.url, token="hf_old")
    assert "HF_TOKEN is not valid there (hf auth login)" in str(told.value.hint)


@pytest.mark.parametrize(("status", "said"), [(401, "set HF_TOKEN"), (403, "accept the model's")])
def test_a_gated_repository_lists_its_files_and_refuses_them(users: Server, status: int, said: str):
    repository(users, {"config.json": json.dumps(SMALL).encode(), "model.safetensors": WEIGHTS})
    users.on(f"/{REPO}/resolve/main/config.json", plain(GATED, status))
    with pytest.raises(ModelNotFound, match="Access to model owner/model is restricted") as told:
        planning.model_of(f"hf://{REPO}")
    assert said in str(told.value.hint)
    if status == 403:
        assert f"{users.url}/{REPO}" in str(told.value.hint)


def test_a_revision_that_is_not_there_is_said_as_the_hub_says_it(users: Server):
    users.on(
        f"/api/models/{REPO}/revision/nope",
        json_reply({"error": "Invalid rev id: nope"}, status=404),
    )
    with pytest.raises(ModelNotFound, match="answered 404: Invalid rev id: nope") as told:
        planning.model_of(f"hf://{REPO}@nope")
    assert "revision" in str(told.value.hint)


def test_too_many_requests_say_to_wait(users: Server):
    users.always(Reply(status=429, body=[b"<html>slow down</html>"], framing="length"))
    with pytest.raises(DownloadError, match=r"answered 429\n") as told:
        planning.model_of(f"hf://{REPO}")
    assert "wait" in str(told.value.hint)


@pytest.mark.parametrize("status", [401, 403])
def test_another_host_that_wants_a_key_is_not_sent_the_users_token(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    server.on("/files/m.gguf", plain("who are you?", status))
    with pytest.raises(DownloadError, match="no key or token is sent to an address") as told:
        planning.model_of(f"{server.url}/files/m.gguf")
    assert "enginekit plan m.gguf" in str(told.value.hint)
    assert "HF_ENDPOINT" not in str(told.value.hint)
    assert not any("authorization" in seen.headers for seen in server.requests)


def test_a_host_that_is_gone_is_no_matter_of_the_hub():
    with Server() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match="cannot be reached") as told:
        describe_url(f"{url}/m.gguf")
    assert "HF_ENDPOINT" not in str(told.value.hint)


def test_what_the_catalog_knows_is_offered_where_the_hub_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
):
    with Server() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(DownloadError) as told:
        planning.model_of("hf://Qwen/Qwen3-8B")
    assert "enginekit plan qwen3-8b " in str(told.value.hint)


# ---------------------------------------------------------------------------------- offline


def test_offline_forbids_the_hub_and_nothing_else(users: Server, monkeypatch: pytest.MonkeyPatch):
    """HF_HUB_OFFLINE is about the Hub: a file server in the house is asked all the same."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (
        f"hf://{REPO}",
        f"hf.co/{REPO}:Q4_K_M",
        f"{users.url}/{REPO}/resolve/main/m.gguf",
        f"https://huggingface.co/{REPO}/resolve/main/m.gguf",
        f"https://huggingface.co/{REPO}",
    ):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set") as told:
            planning.plan(name, hardware="rtx4090")
        assert "unset HF_HUB_OFFLINE" in str(told.value.hint)
    assert users.requests == []
    with Server() as house:
        house.on("/m.gguf", ranged(gguf_file()))
        assert planning.plan(f"{house.url}/m.gguf", hardware="rtx4090").fits


# ------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("name", "repo", "more"),
    [
        ("hf://o/r", "o/r", {}),
        ("hf://o/r/", "o/r", {}),
        ("hf://o/r:Q4_K_M", "o/r", {"quantization": "Q4_K_M"}),
        ("hf://o/r:Q4_K_M@v2", "o/r", {"quantization": "Q4_K_M", "revision": "v2"}),
        ("hf://o/r@v2:Q4_K_M", "o/r", {"quantization": "Q4_K_M", "revision": "v2"}),
        ("hf://o/r@feature/x", "o/r", {"revision": "feature/x"}),
        ("hf://o/r/sub/m.gguf", "o/r", {"file": "sub/m.gguf"}),
        ("hf://o/r/sub/m.gguf@v2", "o/r", {"file": "sub/m.gguf", "revision": "v2"}),
        ("hf://o/r@v2/sub/m.gguf", "o/r", {"file": "sub/m.gguf", "revision": "v2"}),
        ("hf://o/r@refs/pr/3/m.gguf", "o/r", {"file": "m.gguf", "revision": "refs/pr/3"}),
        ("hf.co/o/r:Q8_0", "o/r", {"quantization": "Q8_0"}),
        ("huggingface.co/o/r", "o/r", {}),
        ("https://huggingface.co/o/r", "o/r", {}),
        ("https://hf.co/o/r/tree/v2", "o/r", {"revision": "v2"}),
        ("https://huggingface.co/o/r/blob/main/q/m.gguf", "o/r", {"file": "q/m.gguf"}),
        ("https://huggingface.co/o/r/resolve/v2/m.gguf?download=true", "o/r", {"file": "m.gguf", "revision": "v2"}),
        ("https://huggingface.co/o/r/resolve/refs%2Fpr%2F3/m.gguf", "o/r", {"file": "m.gguf", "revision": "refs/pr/3"}),
        ("http://mirror:8080/hub/o/r/tree/main/q", "o/r", {"file": "q"}),
    ],
)  # fmt: skip
def test_a_repository_is_named_in_many_ways(name: str, repo: str, more: dict[str, str]):
    found = hub_name(name, "http://mirror:8080/hub")
    expected = HubName(repo=repo, **more)
    if "refs%2F" in name:
        assert found is not None
        assert (found.repo, found.revision, found.file) == (repo, "refs/pr/3", "m.gguf")
    else:
        assert found == expected


@pytest.mark.parametrize(
    "name",
    ["hf://o", "hf://", "hf:///r", "hf://o/r@", "https://huggingface.co/gpt2", "https://huggingface.co/spaces/o/r", "https://huggingface.co/datasets/o/r"],
)  # fmt: skip
def test_what_names_no_repository_is_an_error(name: str):
    with pytest.raises(ConfigError):
        hub_name(name, "https://huggingface.co")


@pytest.mark.parametrize("said", ["hf-mirror.com", "http://", "ftp://mirror", "https:///x"])
def test_an_endpoint_that_is_no_address_is_named(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", said)
    with pytest.raises(ConfigError, match=f"HF_ENDPOINT is '{said}'"):
        planning.model_of(f"hf://{REPO}")
    assert planning.model_of("qwen3-8b").n_layers == 36
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_file(0))
    assert planning.model_of(str(file)).n_layers == 2


def test_an_endpoint_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", " ")
    assert _hub.endpoint() == "https://huggingface.co"


def test_other_names_and_hosts_are_not_the_hubs():
    for name in (
        "qwen3:8b",
        "./m.gguf",
        "http://127.0.0.1:8080",
        "https://host/huggingface.co/o/r",
    ):
        assert hub_name(name, _hub.endpoint()) is None
        assert not is_hub(name, _hub.endpoint())
    assert is_hub("https://user@HuggingFace.co/o/r", "https://mirror")


def test_a_file_to_fetch_may_have_its_revision_in_the_middle():
    found = parse_hub("hf://o/r@v2/q/m.gguf")
    assert (found.repo, found.file, found.revision) == ("o/r", "q/m.gguf", "v2")
    with pytest.raises(DownloadError, match="does not name a file"):
        parse_hub("hf://o/r@v2")


def test_an_address_of_the_users_hub_is_read_with_the_users_token(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    repository(server, {"q/m-Q8_0.gguf": gguf_file(1 << 20)})
    spec = planning.model_of(f"{server.url}/{REPO}/blob/main/q/m-Q8_0.gguf")
    assert spec.n_layers == 2
    assert {seen.headers["authorization"] for seen in server.requests} == {"Bearer hf_mine"}


def test_a_renamed_repository_is_followed(users: Server):
    """The Hub answers 307 with the new path, on the listing and on every file."""
    rows = [{"rfilename": "m-Q4_K_M.gguf", "size": len(gguf_file())}]
    for old, new in (
        (f"/api/models/{REPO}/revision/main", "/api/models/owner/new/revision/main"),
        (f"/{REPO}/resolve/main/m-Q4_K_M.gguf", "/owner/new/resolve/main/m-Q4_K_M.gguf"),
    ):
        users.on(old, Reply(status=307, headers={"location": new}, framing="length"))
    users.on("/api/models/owner/new/revision/main", json_reply({"siblings": rows}))
    users.on("/owner/new/resolve/main/m-Q4_K_M.gguf", ranged(gguf_file()))
    assert planning.model_of(f"hf://{REPO}").n_layers == 2


# ------------------------------------------------------------------------- what is the model


def test_a_quantization_that_is_not_there_is_not_answered_with_another(users: Server):
    files = {"config.json": b"{}", "m-Q4_K_M.gguf": b"", "q/m-Q8_0-00001-of-00002.gguf": b""}
    repository(users, files)
    with pytest.raises(ModelNotFound, match="no GGUF file of quantization Q2_K") as told:
        planning.model_of(f"hf://{REPO}:Q2_K")
    assert "it has Q4_K_M, Q8_0" in str(told.value.hint)


def test_a_quantization_of_a_repository_without_gguf_is_an_estimate_to_ask_for(users: Server):
    repository(users, {"config.json": json.dumps(SMALL).encode(), "model.safetensors": WEIGHTS})
    with pytest.raises(ModelNotFound, match="no GGUF file of quantization Q4_K_M") as told:
        planning.model_of(f"hf://{REPO}:Q4_K_M")
    assert f"enginekit plan hf://{REPO} --quant Q4_K_M" in str(told.value.hint)


def test_a_folder_of_a_repository_is_one_model(users: Server):
    repository(users, {"BF16/m-BF16.gguf": b"", "q8/m-Q8_0.gguf": gguf_file(1 << 20)})
    assert planning.model_of(f"hf://{REPO}/q8").n_layers == 2


def test_an_adapter_names_the_model_that_it_is_for(users: Server):
    adapter = json.dumps({"base_model_name_or_path": "Qwen/Qwen3-8B", "peft_type": "LORA"}).encode()
    repository(users, {"adapter_config.json": adapter, "adapter_model.safetensors": WEIGHTS})
    with pytest.raises(ModelNotFound, match=r"is an adapter .*it is for Qwen/Qwen3-8B") as told:
        planning.model_of(f"hf://{REPO}")
    assert told.value.hint == "enginekit plan hf://Qwen/Qwen3-8B"


def test_a_folder_with_an_adapter_says_so_too(tmp_path: Path):
    adapter = {"base_model_name_or_path": "Qwen/Qwen3-8B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelFileError, match="is an adapter") as told:
        planning.model_of(tmp_path)
    assert told.value.hint == "enginekit plan Qwen/Qwen3-8B"


def test_a_split_file_of_which_a_part_is_missing_says_which(users: Server):
    repository(users, {f"m-Q8_0-0000{part}-of-00003.gguf": b"" for part in (1, 3)})
    with pytest.raises(ModelNotFound, match=r"m-Q8_0-00002-of-00003\.gguf is missing"):
        planning.model_of(f"hf://{REPO}")
    assert [seen.path for seen in users.requests] == [
        f"/api/models/{REPO}/revision/main?blobs=true"
    ]


@pytest.mark.parametrize(
    ("names", "wish", "chosen"),
    [
        (["m-BF16.gguf", "m-IQ4_XS.gguf", "m-Q6_K.gguf"], "", "m-IQ4_XS.gguf"),
        (["m-F16.gguf", "m-IQ1_S.gguf", "m-Q5_K_S.gguf"], "", "m-Q5_K_S.gguf"),
        (["mmproj-F16.gguf", "m-Q3_K_M.gguf", "imatrix.gguf"], "", "m-Q3_K_M.gguf"),
        (["one.gguf", "two.gguf"], "", "one.gguf"),
        (["m-IQ2_M.gguf"], "Q2_K", ""),
        (["m-IQ3_XS.gguf"], "Q3_K", ""),
        (["model.q4_k_m.gguf", "model.q4_k_s.gguf"], "q4_k_m", "model.q4_k_m.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (["fp16.gguf", "mine4bit.gguf"], "4bit", "mine4bit.gguf"),
    ],
)
def test_of_several_files_the_one_that_was_meant(names: list[str], wish: str, chosen: str):
    assert hub.choose_gguf(names, wish) == chosen


def test_copies_of_the_weights_count_once(users: Server):
    config = json.dumps(SMALL).encode()
    once = {"config.json": config, "model-00001-of-00001.safetensors": WEIGHTS}
    repository(users, once)
    expected = planning.model_of(f"hf://{REPO}")
    repository(
        users,
        once
        | {
            "consolidated.safetensors": WEIGHTS,
            "original/consolidated.00.pth": b"x" * 999,
            "original/model.safetensors": WEIGHTS,
            "pytorch_model.bin": b"x" * 999,
            "adapter_model.safetensors": WEIGHTS,
        },
    )
    found = planning.model_of(f"hf://{REPO}")
    assert (found.weight_bytes, found.file_bytes) == (expected.weight_bytes, len(WEIGHTS))
    assert found.weight_bytes == 512


def test_a_configuration_without_weights_is_planned_from_its_dimensions(users: Server):
    config: dict[str, Any] = {
        **SMALL,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "head_dim": 64,
    }
    repository(users, {"config.json": json.dumps(config).encode()})
    made = planning.plan(f"hf://{REPO}", hardware="rtx4090")
    assert made.fits
    assert sum(device.terms["weights"].expected for device in made.devices) > 1_000_000

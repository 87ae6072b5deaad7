"""Where the command runs: pipes, full disks, locales, read-only folders."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from enginekit.cli import main
from tests.support.command import enginekit
from tests.support.server import json_reply, refused_url, sse

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""A locale in which Python has no UTF-8, neither for arguments nor for streams."""


def asked(server):
    """What the last chat asked."""
    return [seen for seen in server.requests if seen.method == "POST"][-1].json["messages"]


def answers(server, text):
    piece = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    server.on("/v1/chat/completions", sse(piece, end))


def test_several_words_are_one_prompt(llamacpp, capsys):
    assert main(["chat", "Say", "hi", "to", "Rome."]) == 0
    assert asked(llamacpp) == [{"role": "user", "content": "Say hi to Rome."}]


def test_a_pipe_goes_before_the_prompt(llamacpp):
    done = enginekit("chat", "Sum it up.", text="A long text.\n")
    assert done.returncode == 0, done.stderr
    assert asked(llamacpp) == [{"role": "user", "content": "A long text.\n\nSum it up."}]


def test_an_empty_pipe_leaves_the_prompt_alone(llamacpp):
    assert enginekit("chat", "Say hi.").returncode == 0
    assert asked(llamacpp) == [{"role": "user", "content": "Say hi."}]


def test_a_pipe_that_is_not_utf8_is_read_in_the_locales_encoding(llamacpp):
    done = enginekit("chat", text="Gr\u00fc\u00dfe".encode("latin-1"), PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert asked(llamacpp)[-1]["content"] == "Gr\u00fc\u00dfe"


def test_bytes_that_are_no_text_are_refused_before_anything_is_sent(llamacpp):
    done = enginekit("chat", text=b"\xff\xfe\x00 bytes")
    assert done.returncode == 2
    assert b"not text in UTF-8" in done.stderr
    assert llamacpp.requests == []


@pytest.mark.skipif(os.name == "nt", reason="arguments are bytes on POSIX only")
def test_a_prompt_arrives_whole_under_an_ascii_locale(llamacpp):
    done = enginekit("chat", "Gr\u00fc\u00dfe \U0001f31f".encode(), **ASCII)
    assert done.returncode == 0, done.stderr
    assert asked(llamacpp)[-1]["content"] == "Gr\u00fc\u00dfe \U0001f31f"


def test_an_ascii_terminal_shows_escapes_for_what_it_lacks(llamacpp):
    answers(llamacpp, "a star: \U0001f31f")
    done = enginekit("chat", "hi", **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"a star: \\U0001f31f\n"


def test_json_stays_json_under_an_ascii_locale(llamacpp):
    answers(llamacpp, "a star: \U0001f31f")
    done = enginekit("chat", "hi", "--json", **ASCII)
    assert json.loads(done.stdout)["text"] == "a star: \U0001f31f"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [("chat", "hi"), ("models",), ("engines", "ollama")])
def test_a_full_disk_under_stdout_is_an_error_and_no_traceback(llamacpp, arguments):
    with open("/dev/full", "wb") as full:
        done = enginekit(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: ")
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


def test_a_wrong_option_points_at_the_help_of_its_command(capsys):
    assert main(["chat", "hi", "--temprature", "0"]) == 2
    assert "hint: enginekit chat --help" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_not_asked_for_its_name(monkeypatch, capsys):
    monkeypatch.delenv("ENGINEKIT_ENGINE", raising=False)
    monkeypatch.setenv("ENGINEKIT_BASE_URL", refused_url())
    assert main(["chat", "hi"]) == 1
    shown = capsys.readouterr().err
    assert "connection refused" in shown
    assert "hint: start the server there, or correct ENGINEKIT_BASE_URL" in shown


def test_a_server_of_unknown_kind_is_asked_for_its_name(llamacpp, monkeypatch, capsys):
    monkeypatch.delenv("ENGINEKIT_ENGINE")
    for path in ("/props", "/v1/models", "/health"):
        llamacpp.on(path, json_reply({"error": "no such page"}, status=404))
    llamacpp.on("/", json_reply({"hello": "there"}))
    assert main(["chat", "hi"]) == 1
    shown = capsys.readouterr().err
    assert "something answers there" in shown
    assert "hint: name the engine as well: ENGINEKIT_ENGINE=NAME" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="a folder nobody can write into: /proc")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, capsys):
    monkeypatch.setenv("ENGINEKIT_CACHE_DIR", "/proc/enginekit")
    assert main(["pull", "smollm2:135m"]) == 1
    shown = capsys.readouterr().err
    assert "cannot be kept in /proc/enginekit" in shown
    assert "hint: set ENGINEKIT_CACHE_DIR" in shown


def test_models_lists_the_catalog_and_finds_a_word(capsys):
    assert main(["models"]) == 0
    assert "smollm2" in capsys.readouterr().out
    assert main(["models", "qwen3:8b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["repository"] == "Qwen/Qwen3-8B"
    assert row["parameters"] > 8e9
    assert main(["models", "lama3.1-8b-"]) == 1
    assert "near: llama3.1-8b" in capsys.readouterr().err


def test_a_wrong_model_name_points_at_the_list(capsys):
    assert main(["plan", "lama3.1"]) == 1
    shown = capsys.readouterr().err
    assert "did you mean" in shown
    assert "hint: enginekit models" in shown


def test_trusting_nothing_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ENGINEKIT_CONFIG_DIR", str(tmp_path))
    assert main(["trust"]) == 0
    assert "no address is trusted" in capsys.readouterr().err


def test_doctor_can_be_told_not_to_look_for_engines(capsys):
    assert main(["doctor", "--no-engines"]) == 0
    shown = capsys.readouterr().out
    assert "what each engine can use" in shown
    assert "\nengines\n" not in shown

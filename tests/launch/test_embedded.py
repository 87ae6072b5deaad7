"""The embedded server with a real llama.cpp: it answers, is shared, and never outlives its owners."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from enginekit.errors import LaunchError, ModelFileError
from enginekit.launch import _share, _spawn
from enginekit.launch.embedded import EmbeddedSpec, acquire, running

from .conftest import Owner, ask, family, gone, said, until

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(sys.platform == "win32", reason="ends processes by POSIX signals"),
]
Owners = Callable[..., Owner]
ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]


class TestAnswers:
    def test_a_real_model_answers_and_everything_about_the_server_is_known(
        self, runtime: Path, smollm2: Path
    ) -> None:
        with acquire(EmbeddedSpec(model_path=smollm2, context=1024, alias="smollm2:135m")) as lease:
            answer = ask(lease, "Say hello.", max_tokens=8, temperature=0)
            assert answer["model"] == "smollm2:135m"
            assert answer["usage"]["completion_tokens"] > 0
            assert said(answer).strip()
            assert lease.alive()
            assert "xllamacpp" not in sys.modules
            assert psutil.Process(lease.pid).is_running()
            flags = " ".join(lease.flags)
            assert f"--ctx-size {1024 * lease.slots}" in flags
            assert f"--parallel {lease.slots}" in flags
            props = urllib.request.Request(
                lease.base_url + "/props", headers={"X-Api-Key": lease.api_key}
            )
            with urllib.request.urlopen(props) as reply:
                facts = json.load(reply)
            assert facts["default_generation_settings"]["n_ctx"] == lease.context == 1024
            assert facts["total_slots"] == lease.slots

    def test_the_server_wants_its_key(self, runtime: Path, scripted: Path) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            assert lease.base_url.startswith("http://127.0.0.1:")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(lease.base_url + "/props")
            assert refused.value.code == 401
            refused.value.close()

    def test_the_scripted_model_says_what_it_should(self, runtime: Path, scripted: Path) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            assert said(ask(lease, "hi")) == "Hello there! A café is near."
            thought = ask(lease, "MUSE")["choices"][0]["message"]
            assert thought["reasoning_content"] == "Greet them back."
            tools = [
                {
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string"}},
                        },
                    },
                }
            ]
            called = ask(lease, "CALL", tools=tools)["choices"][0]["message"]["tool_calls"]
            assert json.loads(called[0]["function"]["arguments"]) == {"city": "Rome"}
            assert ask(lease, "LONG", max_tokens=30)["choices"][0]["finish_reason"] == "length"

    def test_a_substituted_template_takes_effect_and_is_noted(
        self, runtime: Path, scripted: Path
    ) -> None:
        spec = EmbeddedSpec(model_path=scripted, chat_template="{{ messages[0].content }}<|same|>")
        with acquire(spec) as lease:
            assert said(ask(lease, "hi", max_tokens=3)).split() == ["again"] * 3
            assert any("template" in note for note in lease.notes)
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            assert not any("template" in note for note in lease.notes)

    def test_embeddings(self, runtime: Path, scripted: Path) -> None:
        with acquire(EmbeddedSpec(model_path=scripted, context=512, embeddings=True)) as lease:
            request = urllib.request.Request(
                lease.base_url + "/v1/embeddings",
                data=json.dumps({"input": ["one", "two"]}).encode(),
                headers={"Authorization": f"Bearer {lease.api_key}"},
            )
            with urllib.request.urlopen(request) as reply:
                rows = json.load(reply)["data"]
            assert [len(row["embedding"]) for row in rows] == [128, 128]
            assert any("mean" in note for note in lease.notes)


class TestSharing:
    def test_a_second_lease_in_this_process_is_on_the_same_server(
        self, runtime: Path, scripted: Path
    ) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as one:
            link = runtime / "link.gguf"
            link.symlink_to(scripted)
            with acquire(EmbeddedSpec(model_path=link)) as two:
                assert (two.pid, two.base_url) == (one.pid, one.base_url)
                assert (one.shared, two.shared) == (False, True)
            until(lambda: running()[0].owners == 1, "the second lease is let go")
            assert one.alive()
            assert not two.alive()

    def test_four_processes_that_start_at_once_load_one_model(
        self, runtime: Path, owners: Owners
    ) -> None:
        started = [owners() for _ in range(4)]
        leases = []
        for owner in started:
            assert owner.hear()["step"] == "starting"
            leases.append(owner.hear())
        assert len({lease["pid"] for lease in leases}) == 1
        assert [lease["shared"] for lease in leases].count(False) == 1
        assert len(list(runtime.glob("*.log"))) == 1
        [row] = running()
        assert (row.owners, row.pid) == (4, leases[0]["pid"])
        assert not any(lease["imported"] or lease["session"] for lease in leases)

    def test_the_last_one_out_stops_it(self, runtime: Path, owners: Owners) -> None:
        one, two = owners(), owners()
        pid = [one.hear(), one.hear()][1]["pid"]
        assert [two.hear(), two.hear()][1]["pid"] == pid
        one.kill(signal.SIGKILL)
        one.process.wait()
        until(lambda: running()[0].owners == 1, "the dead owner is counted out")
        time.sleep(2 * _spawn.LINGER)
        assert not gone(pid)
        two.tell("x")
        until(lambda: gone(pid), "the server ends with its last owner")

    def test_two_specs_run_side_by_side(self, runtime: Path, scripted: Path) -> None:
        with (
            acquire(EmbeddedSpec(model_path=scripted)) as one,
            acquire(EmbeddedSpec(model_path=scripted, context=512)) as two,
        ):
            assert one.pid != two.pid
            assert said(ask(one, "hi")) == said(ask(two, "hi"))
            assert [row.pid for row in running()] == [one.pid, two.pid]

    def test_a_changed_model_file_gets_a_server_of_its_own(
        self, runtime: Path, scripted: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy.gguf"
        copy.write_bytes(scripted.read_bytes())
        with acquire(EmbeddedSpec(model_path=copy)) as one:
            os.utime(copy, (1, 1))
            with acquire(EmbeddedSpec(model_path=copy)) as two:
                assert one.pid != two.pid

    def test_a_forked_child_does_not_hold_or_release_its_parents_lease(
        self, runtime: Path, owners: Owners
    ) -> None:
        owner = owners(after="fork")
        owner.hear()
        pid = owner.hear()["pid"]
        told = owner.hear()
        assert told == {"step": "forked", "child_saw_it_alive": False, "alive": True}
        owner.kill(signal.SIGKILL)
        until(lambda: gone(pid), "the server ends with the parent")

    def test_a_stale_or_broken_state_file_is_no_obstacle(
        self, runtime: Path, scripted: Path
    ) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            [path] = runtime.glob("*.json")
            text = path.read_text()
            first = lease.pid
        until(
            lambda: gone(first) and not path.exists(), "the server ends and takes its state along"
        )
        for stale in (text, "{", json.dumps({"url": 1})):
            path.write_text(stale)
            with acquire(EmbeddedSpec(model_path=scripted)) as lease:
                assert lease.alive()
                assert not lease.shared
                pid = lease.pid
            until(lambda pid=pid: gone(pid), "it ends")  # type: ignore[misc]


class TestSecrets:
    def test_state_and_log_are_for_the_user_alone(self, runtime: Path, scripted: Path) -> None:
        runtime.chmod(0o755)
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            assert runtime.stat().st_mode & 0o777 == 0o700
            for path in (*runtime.glob("*.json"), lease.log_path):
                assert path.stat().st_mode & 0o777 == 0o600
            for process in family(runtime):
                words = " ".join(process.cmdline()) + str(process.environ())
                assert lease.api_key not in words
            assert lease.api_key not in repr(lease) + str(running()) + lease.log_path.read_text()

    def test_another_users_folder_is_refused(
        self, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(LaunchError, match="belongs to another user"):
            _share.folder()

    def test_the_keeper_counts_nobody_without_the_secret(
        self, runtime: Path, scripted: Path
    ) -> None:
        import dataclasses
        import socket

        with acquire(EmbeddedSpec(model_path=scripted)):
            [path] = runtime.glob("*.json")
            state = _share.State.read(path)
            assert state is not None
            assert _share.connect(dataclasses.replace(state, secret="guess")) is None
            with socket.create_connection(("127.0.0.1", state.control)) as silent:
                silent.settimeout(30)
                assert silent.recv(1) == b"", "a silent stranger is sent away"
            assert running()[0].owners == 1


class TestDeaths:
    @pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
    def test_no_orphan_when_the_owner_ends_while_streaming(
        self, runtime: Path, owners: Owners, number: signal.Signals
    ) -> None:
        owner = owners(after="stream")
        owner.hear()
        pid = owner.hear()["pid"]
        assert owner.hear()["step"] == "streaming"
        owner.kill(number)
        owner.process.wait()
        until(lambda: gone(pid) and not family(runtime), "server and keeper end")
        assert not list(runtime.glob("*.json"))

    @pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
    def test_no_orphan_when_the_owner_ends_while_the_model_loads(
        self, runtime: Path, owners: Owners, smollm2: Path, number: signal.Signals
    ) -> None:
        """Loading holds the interpreter lock of the server's process: its keeper must end it."""
        owner = owners(model=str(smollm2), spec={"context": 8192, "slots": 12})
        owner.hear()
        until(
            lambda: any("_server.py" in word for p in family(runtime) for word in p.cmdline()),
            "the server process is there",
        )
        owner.kill(number)
        owner.process.wait()
        until(lambda: not family(runtime), "server and keeper end")
        assert not list(runtime.glob("*.json"))

    def test_ctrl_c_in_a_terminal_leaves_the_decision_to_the_owner(
        self, runtime: Path, owners: Owners
    ) -> None:
        """A real Ctrl-C, through a pseudo-terminal, reaches the owner and not the server."""
        pty = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
        owner = owners(wrap=pty, after="interrupt")
        owner.hear()
        pid = owner.hear()["pid"]
        owner.tell("\x03")
        assert owner.hear() == {"step": "interrupted", "alive": True}
        until(lambda: gone(pid), "the server ends with its owner")

    def test_a_closed_terminal_leaves_nothing(self, runtime: Path, owners: Owners) -> None:
        pty = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
        owner = owners(wrap=pty)
        owner.hear()
        pid = owner.hear()["pid"]
        owner.kill(signal.SIGKILL)  # the terminal itself: the kernel hangs up
        until(lambda: gone(pid), "the server ends")

    def test_the_server_killed_mid_stream_breaks_the_stream_and_the_next_call_starts_it_again(
        self, runtime: Path, owners: Owners, scripted: Path
    ) -> None:
        owner = owners(after="stream")
        owner.hear()
        pid = owner.hear()["pid"]
        owner.hear()
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            assert lease.pid == pid
            os.kill(pid, signal.SIGKILL)
            assert owner.hear()["step"] == "broken"
            until(lambda: not lease.alive(), "the lease notices")
            until(lambda: "ended with code -9" in "".join(lease.last_words()), "the log says how")
            with acquire(EmbeddedSpec(model_path=scripted)) as again:
                assert again.pid != pid
                assert said(ask(again, "hi")).startswith("Hello")

    def test_the_keeper_killed_takes_the_server_along(self, runtime: Path, scripted: Path) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            [path] = runtime.glob("*.json")
            state = _share.State.read(path)
            assert state is not None
            os.kill(state.keeper, signal.SIGKILL)
            until(lambda: gone(lease.pid), "the server ends")
            until(lambda: not lease.alive(), "the lease notices")
            with acquire(EmbeddedSpec(model_path=scripted)) as again:
                assert again.alive()

    @pytest.mark.skipif(
        sys.platform != "linux", reason="elsewhere the keeper tells, a moment later"
    )
    def test_a_dead_server_is_known_as_soon_as_it_has_ended(
        self, runtime: Path, scripted: Path
    ) -> None:
        with acquire(EmbeddedSpec(model_path=scripted)) as lease:
            os.kill(lease.pid, signal.SIGKILL)
            until(lambda: gone(lease.pid), "the server ends")
            # A process is a zombie a moment before the last of its threads has ended.
            until(lambda: not lease.alive(), "the lease notices")

    def test_a_dropped_lease_is_let_go(self, runtime: Path, scripted: Path) -> None:
        lease = acquire(EmbeddedSpec(model_path=scripted))
        pid = lease.pid
        del lease
        gc.collect()
        until(lambda: gone(pid), "the server ends")


class TestFailures:
    def test_out_of_memory_is_named_with_the_log(
        self, runtime: Path, owners: Owners, smollm2: Path
    ) -> None:
        owner = owners(model=str(smollm2), spec={"context": 8192, "slots": 16}, limit=1_500_000_000)
        owner.hear()
        told = owner.hear()
        assert (told["kind"], told["cause"]) == ("LaunchError", "out of memory")
        assert told["log"]
        assert told["hint"]

    def test_a_file_that_only_llama_cpp_finds_broken(self, runtime: Path, tmp_path: Path) -> None:
        from tests.support.scripted import write_gguf

        broken = write_gguf(tmp_path / "broken.gguf", omit=("output_norm.weight",))
        with pytest.raises(ModelFileError, match="lacks tensors") as caught:
            acquire(EmbeddedSpec(model_path=broken))
        assert "output_norm" in str(caught.value)

    def test_a_flag_that_kills_the_server(self, runtime: Path, scripted: Path) -> None:
        spec = EmbeddedSpec(model_path=scripted, extra_args=("--mmproj", "/nowhere.gguf"))
        with pytest.raises(LaunchError, match="nowhere") as caught:
            acquire(spec)
        assert caught.value.log

    def test_the_load_budget_is_kept_and_nothing_is_left(
        self, runtime: Path, smollm2: Path
    ) -> None:
        spec = EmbeddedSpec(model_path=smollm2, context=8192, slots=12)
        with pytest.raises(LaunchError, match=r"in 0\.1 s") as caught:
            acquire(spec, budget=0.1)
        assert caught.value.cause == "the load budget ran out"
        assert not family(runtime)

    def test_a_wait_for_another_process_is_bounded(self, runtime: Path, scripted: Path) -> None:
        from enginekit.catalog._lock import FileLock
        from enginekit.launch import _platform

        spec = EmbeddedSpec(model_path=scripted)
        name = _share.key(spec, _platform.installed_version() or "")
        with (
            FileLock(runtime / f"{name}.lock"),
            pytest.raises(LaunchError, match="another process"),
        ):
            acquire(spec, budget=0.2)

    def test_progress_is_told_begin_and_end(self, runtime: Path, scripted: Path) -> None:
        events: list[str] = []

        class Watch:
            def start(self, total: int | None, label: str) -> None:
                events.append(label)

            def advance(self, count: int) -> None:
                raise AssertionError("loading has no steps")

            def finish(self) -> None:
                events.append("finish")

        acquire(EmbeddedSpec(model_path=scripted), progress=Watch()).release()
        assert events == ["loading scripted", "finish"]

"""What the launcher decides before anything starts: platform, model file, numbers, flags, causes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from enginekit.errors import (
    ConfigError,
    LaunchError,
    MissingExtra,
    ModelFileError,
    UnknownSetting,
    UnsupportedPlatform,
)
from enginekit.launch import _causes, _child, _flags, _platform, _spawn, modelfile
from enginekit.launch._spec import (
    Chosen,
    EmbeddedSpec,
    choose,
    flags,
    settings,
    usable_cores,
)
from enginekit.launch.embedded import acquire, command_line
from tests.support import scripted

HERE = _platform.Here(system="linux", machine="x86_64", bits=64, libc=("glibc", "2.36"))
MAC = _platform.Here(system="darwin", machine="arm64", bits=64, macos=15)
WINDOWS = _platform.Here(system="win32", machine="amd64", bits=64)


class TestPlatform:
    @pytest.mark.parametrize("facts", [HERE, MAC, WINDOWS, replace(HERE, machine="aarch64")])
    def test_where_there_is_a_wheel_the_extra_is_all_that_is_missing(
        self, facts: _platform.Here
    ) -> None:
        error = _platform.obstacle(facts)
        assert isinstance(error, MissingExtra)
        assert error.hint == "pip install 'enginekit[embedded]'"
        assert _platform.obstacle(replace(facts, installed="2026.10.11549")) is None

    @pytest.mark.parametrize(
        ("facts", "says"),
        [
            (replace(HERE, libc=("", "")), r"musl \(Alpine\); it needs Linux with glibc 2\.17"),
            (replace(HERE, libc=("glibc", "2.12")), r"glibc 2\.12; it needs glibc 2\.17"),
            (replace(HERE, bits=32), "32-bit Python; it needs a 64-bit"),
            (replace(HERE, machine="riscv64"), "riscv64; it needs x86_64 or aarch64"),
            (replace(MAC, macos=12), "macOS 12; it needs macOS 13 or newer"),
            (replace(WINDOWS, machine="arm64"), "Windows on arm64; it needs Windows on x86_64"),
            (replace(HERE, system="freebsd14"), "freebsd14; it needs Linux"),
        ],
    )
    def test_elsewhere_it_is_refused_by_name_and_minimum(
        self, facts: _platform.Here, says: str
    ) -> None:
        for installed in ("", "0.2.13"):
            error = _platform.obstacle(replace(facts, installed=installed))
            assert isinstance(error, UnsupportedPlatform)
            with pytest.raises(UnsupportedPlatform, match=says):
                raise error
            assert "ENGINEKIT_ENGINE" in str(error.hint)

    def test_a_wheel_that_runs_is_believed_wherever_it_came_from(self) -> None:
        built = replace(HERE, libc=("", ""), installed="2026.11.1")
        assert _platform.obstacle(built) is None

    def test_a_years_old_build_does_not_count(self) -> None:
        error = _platform.obstacle(replace(HERE, installed="0.2.13"))
        assert isinstance(error, MissingExtra)
        assert "0.2.13 is installed" in error.message
        assert "--upgrade" in str(error.hint)

    def test_without_the_package_acquire_says_how_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_platform, "installed_version", lambda: None)
        with pytest.raises(MissingExtra):
            acquire(EmbeddedSpec(model_path=Path("any.gguf")))


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting anything fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def _truncated(path: Path) -> None:
    path.write_bytes(scripted.write_gguf(path).read_bytes()[:-5000])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(scripted.write_gguf(path).read_bytes()[:2000])


BROKEN: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("truncated", _truncated, "is truncated: its tensors end at byte", "download"),
    ("cut in header", _cut_in_header, "byte", ""),
    ("text", lambda path: path.write_text("hello, I am not a model"), "magic", "fetch it again"),
    ("empty", lambda path: path.write_bytes(b""), "magic", "fetch it again"),
    (
        "lfs",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x"),
        "magic",
        "git lfs pull",
    ),
    ("html", lambda path: path.write_text("<!doctype html><html>"), "magic", "web page"),
    ("zip", lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "magic", "PyTorch"),
    (
        "safetensors",
        lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{" + b" " * 100),
        "magic",
        "safetensors",
    ),
    (
        "architecture",
        lambda path: scripted.write_gguf(path, architecture="novelnet"),
        "'novelnet', which llama.cpp does not know",
        "upgrade",
    ),
    (
        "projector",
        lambda path: scripted.write_gguf(path, architecture="clip"),
        "projector for images",
        "own GGUF",
    ),
]


class TestModelFile:
    @pytest.mark.parametrize(
        ("make", "says", "hint"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
    )
    def test_a_bad_file_is_named_before_any_process_starts(
        self,
        runtime: Path,
        tmp_path: Path,
        no_process: None,
        make: Callable[[Path], object],
        says: str,
        hint: str,
    ) -> None:
        path = tmp_path / "model.gguf"
        make(path)
        with pytest.raises(ModelFileError, match=says) as caught:
            acquire(EmbeddedSpec(model_path=path))
        assert "model.gguf" in caught.value.message
        assert hint in str(caught.value.hint)

    def test_a_missing_file(self, runtime: Path, tmp_path: Path, no_process: None) -> None:
        with pytest.raises(ModelFileError, match="does not exist"):
            acquire(EmbeddedSpec(model_path=tmp_path / "none.gguf"))

    def test_a_newer_llama_cpp_may_know_more_architectures(self, tmp_path: Path) -> None:
        path = scripted.write_gguf(tmp_path / "m.gguf", architecture="novelnet")
        assert modelfile.check(path, installed="2027.1.1").architecture == "novelnet"
        with pytest.raises(ModelFileError):
            modelfile.check(path, installed=modelfile.READ_FROM)

    def test_what_a_good_file_says(self, tmp_path: Path) -> None:
        header = modelfile.check(scripted.write_gguf(tmp_path / "m.gguf"))
        assert header.architecture == "llama"
        assert header.trained_context == scripted.CONTEXT
        # one layer, four heads of 32, keys and values, two bytes each
        assert header.kv_bytes_per_token == 1 * 4 * (32 + 32) * 2

    def test_the_known_architectures_are_many(self) -> None:
        known = modelfile.architectures()
        assert {"llama", "qwen3", "gemma3", "gpt-oss", "deepseek2", "mamba2"} <= known
        assert "clip" not in known
        assert len(known) > 120


def header(context: int = 131072, layers: int = 32) -> modelfile.Header:
    """Llama 3.1 8B's cache: 128 KiB a token."""
    return modelfile.Header(
        architecture="llama",
        metadata={
            "llama.context_length": context,
            "llama.block_count": layers,
            "llama.attention.head_count": 32,
            "llama.attention.head_count_kv": 8,
            "llama.embedding_length": 4096,
        },
    )


SPEC = EmbeddedSpec(model_path=Path("/m/model.gguf"))
GIB = 1 << 30


class TestNumbers:
    def test_the_defaults_on_a_roomy_machine(self) -> None:
        assert header().kv_bytes_per_token == 131072
        chosen = choose(SPEC, header(), cores=8, memory=64 * GIB)
        assert (chosen.context, chosen.slots, chosen.threads) == (8192, 4, 8)
        assert chosen.notes == ()

    def test_a_short_trained_context_is_the_limit(self) -> None:
        assert choose(SPEC, header(2048), cores=2, memory=64 * GIB).context == 2048
        asked = choose(replace(SPEC, context=4096), header(2048), cores=2, memory=64 * GIB)
        assert asked.context == 2048
        assert "trained for 2048" in asked.notes[0]

    def test_little_memory_costs_slots_first_and_then_context(self) -> None:
        assert choose(SPEC, header(), cores=8, memory=4 * GIB).slots == 2
        tight = choose(SPEC, header(), cores=8, memory=GIB)
        assert (tight.context, tight.slots) == (4096, 1)
        assert "little memory" in tight.notes[0]
        assert choose(SPEC, header(), cores=8, memory=1).context == 2048

    def test_what_was_asked_for_is_kept(self) -> None:
        asked = replace(SPEC, context=16384, slots=3, threads=5)
        chosen = choose(asked, header(), cores=1, memory=1)
        assert (chosen.context, chosen.slots, chosen.threads) == (16384, 3, 5)

    @pytest.mark.parametrize(
        ("physical", "allowed", "quota", "cores"),
        [
            (8, 16, None, 8),
            (8, 2, None, 2),
            (64, 128, 2.0, 2),
            (64, 128, 1.5, 2),
            (8, 16, 0.5, 1),
            (4, 8, 16.0, 4),
            (None, 6, None, 6),
            (6, None, None, 6),
            (None, None, None, 1),
        ],
    )
    def test_a_thread_for_each_core_that_is_really_there(
        self, physical: int | None, allowed: int | None, quota: float | None, cores: int
    ) -> None:
        assert usable_cores(physical, allowed, quota) == cores

    def test_a_header_that_says_little_gets_the_defaults(self) -> None:
        bare = modelfile.Header(architecture="llama")
        assert choose(SPEC, bare, cores=2, memory=1).context == 8192

    @pytest.mark.parametrize("field", ["context", "slots", "threads"])
    def test_less_than_one_is_refused(self, field: str) -> None:
        with pytest.raises(ValueError, match=f"{field} must be at least 1"):
            replace(SPEC, **{field: 0})

    @pytest.mark.parametrize(("make", "why"), [(None, "No such file"), (b"\xff\xfe", "UTF-8")])
    def test_a_template_that_cannot_be_read_is_named(
        self, tmp_path: Path, make: bytes | None, why: str
    ) -> None:
        path = tmp_path / "chat.jinja"
        if make is not None:
            path.write_bytes(make)
        with pytest.raises(ConfigError, match=rf"chat\.jinja cannot be read: .*{why}"):
            _ = replace(SPEC, chat_template=str(path)).template_text

    def test_flags_and_settings_say_the_same(self) -> None:
        chosen = Chosen(context=4096, slots=2, threads=3)
        words = " ".join(flags(SPEC, chosen))
        assert "--ctx-size 8192 --parallel 2 --no-kv-unified --threads 3" in words
        made = {setting.path: setting.value for setting in settings(SPEC, chosen)}
        assert (made["n_ctx"], made["n_parallel"], made["kv_unified"]) == (8192, 2, False)
        assert made["port"] == 0
        assert "chat_template" not in made

    def test_the_command_for_a_person(self, tmp_path: Path) -> None:
        path = scripted.write_gguf(tmp_path / "m.gguf")
        command = command_line(EmbeddedSpec(model_path=path, context=512, slots=2))
        assert command[:3] == ("llama-server", "--model", str(path))
        assert "1024" in command


class TestFlags:
    def test_long_short_and_joined_forms(self) -> None:
        read = _flags.read(("-fa", "on", "--cache-type-k=q8_0", "-ngl", "10", "--metrics"))
        assert [tuple(setting) for setting in read] == [
            ("flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_ENABLED", "llama_flash_attn_type"),
            ("cache_type_k", "GGML_TYPE_Q8_0", "ggml_type"),
            ("n_gpu_layers", 10, ""),
            ("endpoint_metrics", True, ""),
        ]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--flash-atn", "on"), "the nearest are --flash-attn"),
            (("--flash-attn", "yes"), "one of on, off, auto"),
            (("--batch-size", "many"), "takes a whole number"),
            (("--batch-size",), "needs a value"),
            (("--ctx-size", "1"), "'context' of EmbeddedSpec"),
            (("--host", "0.0.0.0"), "loopback only"),
            (("--api-key", "x"), "makes a key of its own"),
        ],
    )
    def test_what_is_not_known_is_refused_before_anything_starts(
        self, words: tuple[str, ...], says: str
    ) -> None:
        with pytest.raises(UnknownSetting, match=says):
            _flags.read(words)

    @pytest.mark.embedded
    def test_every_flag_is_an_attribute_of_the_real_xllamacpp(self) -> None:
        """In a process of its own: xllamacpp is never imported here."""
        words: list[str] = []
        values = {"int": "1", "float": "1.5", "text": "x"}
        for name, flag in _flags.FLAGS.items():
            if flag.kind == "choice" and flag.choices:
                for choice in flag.choices:
                    words += [name, choice]
            else:
                words += [name] + ([values[flag.kind]] if flag.kind in values else [])
        made = [*_flags.read(words), *settings(SPEC, Chosen(context=1, slots=1, threads=1))]
        code = (
            "import json, sys, xllamacpp\n"
            "from enginekit.launch._server import _apply\n"
            "params = xllamacpp.CommonParams()\n"
            "for row in json.load(sys.stdin):\n"
            "    _apply(xllamacpp, params, [row])\n"
            "    assert hasattr(params, row[0].split('.')[0]), row\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(made), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class TestCauses:
    @pytest.mark.parametrize(
        ("line", "cause", "of_the_file"),
        [
            ("error loading model: unknown model architecture: 'nova'", "architecture nova", True),
            ("tensor 'x' data is not within the file bounds", "truncated", True),
            ("invalid magic characters: 'hell'", "not a GGUF", True),
            (
                "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer",
                "memory",
                False,
            ),
            ("terminate called after throwing an instance of 'std::bad_alloc'", "memory", False),
            (
                "terminate called after throwing an instance of 'std::system_error'\n"
                "  what():  Resource temporarily unavailable",
                "no thread could be started",
                False,
            ),
            ("couldn't bind HTTP server socket", "port was taken", False),
            ("ModuleNotFoundError: No module named 'xllamacpp'", "not installed", False),
            ("version `GLIBC_2.35' not found", "does not fit this system", False),
            ("enginekit: the server process ended with code -9", "memory ran out", False),
            ("enginekit: the server process ended with code -6", "aborted", False),
            ("enginekit: the server process ended with code 3", "code 3", False),
            ("nothing of note", "unknown", False),
        ],
    )
    def test_the_likely_cause_of_a_death(self, line: str, cause: str, of_the_file: bool) -> None:
        found = _causes.likely(["0.00.1 I srv init", line])
        assert cause in found.text
        assert found.model_file == of_the_file

    def test_the_end_of_a_log_that_may_not_exist(self, tmp_path: Path) -> None:
        assert _causes.tail(tmp_path / "none.log") == ()
        log = tmp_path / "a.log"
        log.write_text("\n".join(str(number) for number in range(100_000)))
        assert _causes.tail(log, 2) == ("99998", "99999")

    def test_a_log_is_cut_to_its_end(self, tmp_path: Path) -> None:
        log = tmp_path / "a.log"
        log.write_bytes(b"a" * 5_000_000 + b"the end")
        keeper = _child.Keeper({"log": str(log)})
        try:
            keeper._trim_log()
            assert log.stat().st_size == 1 << 20
            assert log.read_bytes().endswith(b"the end")
            keeper._trim_log()
            assert log.stat().st_size == 1 << 20
        finally:
            for end in (keeper.listener, keeper.bell, keeper.rope, keeper.selector):
                end.close()

    def test_old_logs_are_pruned(self, tmp_path: Path) -> None:
        logs = [_spawn._new_log(tmp_path, "key", str(number)) for number in range(6)]
        assert len(list(tmp_path.iterdir())) == _spawn._KEPT_LOGS
        assert logs[-1].exists()


class TestPython:
    def test_a_host_program_that_is_no_python_is_not_started(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
        assert Path(_spawn._python()).name == "python3"
        monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
        with pytest.raises(LaunchError, match="no Python interpreter") as caught:
            _spawn._python()
        assert "ENGINEKIT_ENGINE=llamacpp" in str(caught.value.hint)

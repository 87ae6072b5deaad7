"""`enginekit plan`, `matrix` and `doctor` as a person and a pipe see them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from enginekit.cli import main
from enginekit.cli.output import stdout
from enginekit.cli.plan import bar_of, render
from enginekit.errors import ConfigError
from enginekit.hardware import machine_from_dict, preset, preset_names
from enginekit.kit import planning
from enginekit.sizing.calibration import Measurement

GIB = 2**30


def test_the_plan_names_every_term_in_80_columns(capsys):
    assert main(["plan", "llama3.1-8b", "--hardware", "rtx4090", "--context", "8192"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("command"))
    assert lines[0] == "llama3.1-8b Q4_K_M fits on rtx4090 (one GPU)"
    head = next(line for line in lines if line.startswith("GiB"))
    assert head.split() == ["GiB", "weights", "cache", "compute", "runtime", "used", "low-high",
                            "limit", "free"]  # fmt: skip
    row = next(line for line in lines if line.startswith("GPU 0 "))
    assert row.split()[2:4] == ["4.30", "1.00"]
    assert "\x1b" not in shown.out


def test_json_is_one_object_in_bytes(capsys):
    assert main(["plan", "qwen3:8b", "--hardware", "rtx4090", "--context", "8192", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["devices"][0]["terms"]["cache"]["expected"] == 1152 * 2**20
    used = found["devices"][0]["used"]
    assert used["low"] < used["expected"] < used["high"]
    assert found["speed"]["decode"]["expected"] > 0


@pytest.mark.parametrize(
    ("options", "counted", "flag"),
    [
        # What the embedded engine starts has no projector, and the command says the same.
        ([], False, True),
        (["--images"], True, False),
        (["--engine", "llamacpp"], True, False),
        (["--engine", "llamacpp", "--no-images"], False, True),
    ],
)
def test_a_projector_is_counted_where_the_command_loads_it(capsys, options, counted, flag):
    main(["plan", "gemma3-4b", "--hardware", "rtx4090", "--context", "8192", "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert ("projector" in found["devices"][0]["terms"]) == counted
    assert ("--no-mmproj" in found["command"].split()) == flag


def test_the_bar_and_the_table_show_the_projector(capsys):
    main(["plan", "gemma3-4b", "--hardware", "rtx4090", "--engine", "llamacpp"])
    lines = capsys.readouterr().out.splitlines()
    assert "projector" in next(line for line in lines if line.startswith("GiB"))
    assert "@ projector" in " ".join(lines)
    assert "@" in next(line for line in lines if line.startswith("GPU 0") and "|" in line)
    main(["plan", "llama3.1-8b", "--hardware", "rtx4090", "--engine", "llamacpp"])
    assert "@" not in capsys.readouterr().out


def test_exit_code_3_when_nothing_fits_and_the_way_out_is_shown(capsys):
    assert main(["plan", "llama3.1-405b", "--hardware", "rtx4090"]) == 3
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "to fit" in out
    assert "!" in next(line for line in out.splitlines() if line.endswith("|"))


def test_the_engine_decides_the_rules(capsys):
    main(["plan", "llama3.1-8b", "--hardware", "rtx4080", "--engine", "ollama"])
    assert "OLLAMA_CONTEXT_LENGTH=4096" in capsys.readouterr().out
    main(["plan", "llama3.1-8b", "--hardware", "h100", "--engine", "vllm", "--context", "8192"])
    out = capsys.readouterr().out
    assert "--max-model-len 8192" in " ".join(out.split())
    assert "pool " in out


def test_weights_and_cache_together_keep_users_and_context(capsys):
    """Neither alone is enough on two L40S; the plan that is offered then fits as it stands."""
    asked = ["plan", "qwen3-32b", "--engine", "vllm", "--hardware", "2xl40s", "--users", "32",
             "--context", "8192"]  # fmt: skip
    assert main(asked) == 3
    assert "1. fp8 + fp8 cache" in capsys.readouterr().out
    assert main([*asked, "--quant", "fp8"]) == 3
    assert main([*asked, "--cache", "fp8"]) == 3
    assert main([*asked, "--quant", "fp8", "--cache", "fp8"]) == 0
    assert "fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "llama3.1-8b", "--hardware", "rtx4900"], "near: "),
        (["plan", "lama3.1-8b", "--hardware", "rtx4090"], "did you mean"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--quant", "Q9"], "Q4_K_M"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--cache", "q7"], "q8_0"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--users", "0"], "users must be at least 1, not 0"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--users", "1000000000"], "users must be at most"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--context", "999999999999"], "context must be at most 2147483647"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--context", "-1"], "context must be at least 1, not -1"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--context", "1e5"], "write 8192, 8k or 1M"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--ubatch", "0"], "ubatch must be at least 1"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--engine", "vllm", "--sequences", "0"], "sequences must be at least 1"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--quant", "q4km"], "did you mean Q4_K_M"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--cache", "fp8"], "the engine has f16, q8_0, q4_0"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--cache", "q8_0", "--engine", "vllm"], "the engine has auto, fp8"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4090", "--cache", "fp8", "--engine", "mlc"], "the engine has auto"),
        (["plan", "llama3.1-8b", "--hardware", "rtx4900"], "enginekit hardware"),
        (["plan", "llama3.1-8b", "--engine", "vlm"], "vllm"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_an_error_that_helps(arguments, said, capsys):
    assert main(arguments) in (1, 2)
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_machine_of_ones_own_in_a_file(tmp_path, capsys):
    file = tmp_path / "next.toml"
    file.write_text(
        'name = "next"\n[[gpus]]\nvendor = "nvidia"\nname = "NVIDIA L40S"\ncount = 2\n'
        'total_bytes = "46068 MiB"\n[memory]\ntotal_bytes = "128 GiB"\n'
    )
    assert main(["plan", "llama3.1-70b", "--hardware", str(file), "--context", "8192"]) == 0
    out = capsys.readouterr().out
    assert "on next" in out
    assert "GPU 0" in out


def test_this_computer_is_planned_for_without_asking(capsys):
    assert main(["plan", "smollm2-135m", "--context", "1024"]) in (0, 3)
    assert "this computer" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--hardware=rtx4090", "--engine=vllm", "--quant=Q8_0"])
def test_a_load_is_measured_on_this_computer_only(option, capsys):
    assert main(["plan", "smollm2:135m", "--measure", option]) == 2
    said = capsys.readouterr().err
    assert option.partition("=")[0] in said
    assert "hint: enginekit plan smollm2:135m --measure" in said


def test_the_bar_shows_shares_and_what_is_missing():
    fits = planning.plan("llama3.1-8b", hardware="rtx4090", context=8192).devices[0]
    bar = bar_of(fits, 100)
    assert len(bar) == 100
    share = fits.terms["weights"].expected / fits.limit
    assert bar.count("#") == pytest.approx(100 * share, abs=1)
    assert "!" not in bar
    over = planning.plan("llama3.1-405b", hardware="rtx4090").devices[0]
    missing = 1 - over.limit / over.used.expected
    assert bar_of(over, 100).count("!") == pytest.approx(100 * missing, abs=1)


def test_equal_gpus_share_a_line():
    made = planning.plan("llama3.1-70b", hardware="8xh100", engine="vllm", context=8192)
    assert sum("GPU 0-3 each" in line for line in render(made)) == 2


def test_a_local_file_is_what_the_command_names(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048,
                "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                "intermediate_size": 8192, "vocab_size": 128256, "torch_dtype": "bfloat16",
                "max_position_embeddings": 8192, "tie_word_embeddings": True,
            }
        )
    )  # fmt: skip
    made = planning.plan(str(folder), hardware="rtx4090", engine="vllm", context=4096)
    assert str(folder) in made.command


def test_hub_names_need_an_owner_and_a_repository():
    with pytest.raises(ConfigError, match="hf://owner/repo"):
        planning.model_of("hf://nothing")


def test_measured_loads_are_kept_and_used_for_the_same_version(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINEKIT_CACHE_DIR", str(tmp_path))
    assert planning.measurements() == []
    one = Measurement(engine="llamacpp", version="b1", architecture="llama", backend="cuda",
                      term="compute", estimated=1000, measured=900)  # fmt: skip
    planning.remember(one)
    with planning.calibration_file().open("a") as file:
        file.write("not json\n")
    assert planning.measurements() == [one]
    options = {"hardware": "rtx4090", "context": 8192}
    plain = planning.plan("llama3.1-8b", **options)
    same = planning.plan("llama3.1-8b", engine_version="b1", **options)
    other = planning.plan("llama3.1-8b", engine_version="b2", **options)
    assert same.devices[0].terms["compute"].expected < plain.devices[0].terms["compute"].expected
    assert "corrected by 1 measured load of llamacpp b1" in " ".join(same.notes)
    assert other == plain


def test_the_matrix_says_how_far_the_rules_are_off(capsys):
    assert main(["matrix", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["size"]: row for row in found["rows"]}
    # Files of 4.91, 8.98-9.07 and 42.5 GB where the rule says 4.5, 8 and 40.
    assert rows["8B"]["bits"]["4"]["exact"] == pytest.approx(4.91e9, rel=0.005)
    assert rows["70B"]["bits"]["4"]["exact"] == pytest.approx(42.5e9, rel=0.005)
    assert rows["8B"]["bits"]["2"]["error"] == pytest.approx(-0.21, abs=0.01)
    assert rows["70B"]["bits"]["2"]["error"] == pytest.approx(-0.24, abs=0.01)
    assert -0.19 < rows["1.5B"]["bits"]["4"]["error"] < -0.17
    # Cache and compute over Q4_K_M weights: 25, 91 and 355 per cent for an 8B.
    overhead = rows["8B"]["overhead"]
    assert [round(100 * overhead[k]) for k in ("8192", "32768", "131072")] == [25, 91, 355]
    assert rows["671B"]["overhead"]["131072"] == pytest.approx(0.024, abs=0.002)
    verdicts = {claim["sentence"]: claim["verdict"] for claim in found["claims"]}
    assert verdicts["two RTX 3090 run 70B at 4 bits"] == "fits"
    assert verdicts["eight 80 GB GPUs hold DeepSeek-V3 in FP8"] == "no"


def test_the_matrix_is_a_table_of_80_columns(capsys):
    assert main(["matrix"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("1T+") for line in lines) == 2


def test_doctor_says_what_was_found_and_how_it_is_known(capsys):
    assert main(["doctor", "--hardware", "rtx4090"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA GeForce RTX 4090" in out
    assert "table: GeForce RTX 4090" in out
    assert "what each engine can use" in out


def test_doctor_looks_at_this_computer_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["memory"]["total_bytes"] > GIB // 4
    assert isinstance(found["engines"], list)


def test_a_preset_in_the_plan_is_the_preset_in_the_detector():
    assert planning.machine_of("rtx4090") == preset("rtx4090")


@pytest.mark.parametrize("width", [40, 57, 80])
@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_a_plan_is_as_wide_as_the_terminal(width: int, engine: str) -> None:
    """Only a word that is wider itself, as a model's name in the command, stays whole."""
    made = planning.plan("qwen2.5-72b", hardware="2xrtx4090", engine=engine)
    lines = render(made, width)
    for line in lines:
        assert len(line) <= max([width, *(9 + len(word) for word in line.split())])
    assert any(line.startswith("GiB") for line in lines)
    bars = [line for line in lines if line.endswith("|")]
    assert {len(bar) for bar in bars} == {width - 6}
    shown = " ".join(" ".join(lines).split())
    for device in made.devices:
        assert f"{device.limit / 2**30:.2f}" in shown


@pytest.mark.parametrize(
    ("written", "tokens"), [("8k", 8192), ("8K", 8192), ("1M", 2**20), ("32_768", 32768)]
)
def test_a_context_may_be_written_as_people_say_it(written, tokens, capsys):
    main(["plan", "llama3.1-8b", "--hardware", "h100", "--context", written, "--json"])
    assert json.loads(capsys.readouterr().out)["context"] == tokens


def test_a_context_beyond_what_the_model_was_trained_for_is_said_at_the_top():
    made = planning.plan("qwen3-8b", hardware="h100", context=65536)
    assert "as asked, though trained for 40960 only" in render(made)[1] + render(made)[2]
    assert any(note.startswith("trained for 40960 tokens only") for note in made.notes)


def test_a_tight_plan_says_what_the_margin_leaves_instead_of_nought():
    """ "largest context 0 tokens; 0 users" under a plan that loads would contradict it."""
    made = planning.plan("qwen3-8b", hardware=_small(5700), context=2048)
    assert (made.verdict, made.largest_context, made.most_users) == ("tight", 0, 0)
    shown = "\n".join(render(made))
    assert "largest  with the margin left free: no context; no users at 2048 tokens" in shown
    assert "context 0 tokens" not in shown


def _small(mebibytes):
    """A computer without a GPU that is mostly taken: only so much memory is free."""
    document = {
        "cpu": {"physical_cores": 8},
        "memory": {"total_bytes": "64 GiB", "available_bytes": f"{mebibytes} MiB"},
    }
    return machine_from_dict(document)


def test_what_cannot_fit_at_all_has_no_largest_context():
    made = planning.plan("llama3.1-405b", hardware="rtx4090")
    assert made.room == "no context fits beside the weights and the margin"
    assert "largest" not in "\n".join(
        render(planning.plan("qwen3-8b", hardware="raspberry-pi-5", engine="tgi"))
    )


def test_quantizations_are_shown_in_their_own_capitals():
    assert (
        planning.plan("qwen3-8b", hardware="rtx4090", quantization="q4_k_m").quantization
        == "Q4_K_M"
    )
    assert (
        planning.plan("qwen3-8b", hardware="rtx4090", quantization="UD-Q4_K_XL").quantization
        == "UD-Q4_K_XL"
    )


def test_hardware_lists_the_machines_and_finds_a_word(capsys):
    assert main(["hardware", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["machines"]
    assert [machine["name"] for machine in found] == list(preset_names())
    assert machine_from_dict(found[0]) == preset(preset_names()[0])
    assert main(["hardware", "mi300x"]) == 0
    shown = capsys.readouterr().out
    assert "8xmi300x" in shown
    assert "rtx4090" not in shown
    assert main(["hardware", "rtx409o"]) == 2
    assert "near: rtx4090" in capsys.readouterr().err


def test_a_model_that_does_not_state_its_context_is_not_said_to_be_trained_for_one():
    spec = replace(planning.model_of("qwen3-8b"), context_length=0)
    made = planning.plan(spec, hardware="h100")
    assert made.context_reason == "what it was trained for is not known"


def test_an_error_cannot_command_the_terminal(tmp_path, capsys):
    """A hostile file's words are quoted in messages."""
    file = tmp_path / "\x1b[31mred.gguf"
    file.write_bytes(b"GGUF\x09\0\0\0" + bytes(16))
    assert main(["plan", str(file), "--hardware", "rtx4090"]) == 1
    shown = capsys.readouterr().err
    assert r"\x1b[31mred.gguf: version" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("command", [["matrix"], ["doctor", "--hardware", "4xrtx4090"]])
def test_tables_are_no_wider_than_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setattr(stdout, "width", width)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(width, 80)
    assert not any("-0%" in line for line in lines)


def test_the_matrix_shows_no_context_that_the_model_was_not_trained_for(capsys):
    main(["matrix"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "phi4" in line)
    assert row.split() == ["14B", "phi4", "+20%", "-", "-", "rtx3060-12"]


JSON_CASES = [
    ("fits", ["llama3.1-8b", "--hardware", "rtx4090"]),
    ("tight", ["qwen3-8b", "--hardware", "BOX", "--context", "2048"]),
    ("no", ["llama3.1-405b", "--hardware", "rtx4090"]),
    ("no", ["llama3.1-8b", "--hardware", "raspberry-pi-5", "--engine", "tgi"]),
    ("fits", ["bge-m3", "--hardware", "rtx4090"]),
    ("fits", ["qwen3-next-80b-a3b", "--hardware", "h100"]),
    ("fits", ["kimi-k2", "--hardware", "8xmi300x", "--engine", "vllm", "--quant", "fp8-block"]),
]


@pytest.mark.parametrize(("verdict", "arguments"), JSON_CASES)
def test_json_is_strict_the_same_each_time_and_of_one_layout(verdict, arguments, tmp_path, capsys):
    """`jq` and other languages know no NaN and no Infinity."""
    box = tmp_path / "box.json"
    box.write_text(json.dumps({"memory": {"total_bytes": "64 GiB", "available_bytes": "5700 MiB"}}))
    arguments = [str(box) if word == "BOX" else word for word in arguments]
    shown = []
    for _ in range(2):
        assert main(["plan", *arguments, "--json"]) == (3 if verdict == "no" else 0)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]

    def refuse(word):
        raise AssertionError(word)

    found = json.loads(shown[0], parse_constant=refuse)
    assert found["verdict"] == verdict
    other = planning.plan("qwen3-8b", hardware="rtx4090").to_dict()
    assert list(found) == list(other)
    assert list(found["speed"]) == list(other["speed"])

"""llama-server's flags as xllamacpp's attributes: data, and the reading of a user's extra flags.

xllamacpp parses no command line, so each flag we allow is a row here. Attribute names and enum
members are those of xllamacpp 2026.10.11549; flags those of llama-server b11434.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from enginekit.errors import UnknownSetting, describe_choices


class Setting(NamedTuple):
    """One attribute to set: dotted path, value, and the enumeration the value is a member of."""

    path: str
    value: Any
    enum: str = ""


class Flag(NamedTuple):
    """One flag.

    Attributes:
        path: attribute of `CommonParams`, dotted.
        kind: `int`, `float`, `text`, `on` / `off` (takes no value), or `choice`.
        enum: for `choice`, the xllamacpp enumeration.
        choices: for `choice`, the word on the command line and the member it names.
    """

    path: str
    kind: str
    enum: str = ""
    choices: MappingProxyType[str, str] = MappingProxyType({})


def _types(*names: str) -> MappingProxyType[str, str]:
    return MappingProxyType({name: f"GGML_TYPE_{name.upper()}" for name in names})


_KV_TYPES = _types("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

FLAGS: MappingProxyType[str, Flag] = MappingProxyType(
    {
        "--threads": Flag("cpuparams.n_threads", "int"),
        "--threads-batch": Flag("cpuparams_batch.n_threads", "int"),
        "--threads-http": Flag("n_threads_http", "int"),
        "--batch-size": Flag("n_batch", "int"),
        "--ubatch-size": Flag("n_ubatch", "int"),
        "--gpu-layers": Flag("n_gpu_layers", "int"),
        "--main-gpu": Flag("main_gpu", "int"),
        "--split-mode": Flag(
            "split_mode",
            "choice",
            "llama_split_mode",
            MappingProxyType(
                {name: f"LLAMA_SPLIT_MODE_{name.upper()}" for name in ("none", "layer", "row")}
            ),
        ),
        "--flash-attn": Flag(
            "flash_attn_type",
            "choice",
            "llama_flash_attn_type",
            MappingProxyType(
                {
                    "on": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
                    "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
                    "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO",
                }
            ),
        ),
        "--cache-type-k": Flag("cache_type_k", "choice", "ggml_type", _KV_TYPES),
        "--cache-type-v": Flag("cache_type_v", "choice", "ggml_type", _KV_TYPES),
        "--cache-ram": Flag("cache_ram_mib", "int"),
        "--cache-reuse": Flag("n_cache_reuse", "int"),
        "--kv-unified": Flag("kv_unified", "on"),
        "--no-kv-unified": Flag("kv_unified", "off"),
        "--no-kv-offload": Flag("no_kv_offload", "on"),
        "--context-shift": Flag("ctx_shift", "on"),
        "--swa-full": Flag("swa_full", "on"),
        "--warmup": Flag("warmup", "on"),
        "--no-warmup": Flag("warmup", "off"),
        "--check-tensors": Flag("check_tensors", "on"),
        "--no-mmap": Flag("load_mode", "choice", "llama_load_mode"),
        "--mlock": Flag("load_mode", "choice", "llama_load_mode"),
        "--mmproj": Flag("mmproj.path", "text"),
        "--no-jinja": Flag("use_jinja", "off"),
        "--metrics": Flag("endpoint_metrics", "on"),
        "--no-slots": Flag("endpoint_slots", "off"),
        "--rope-freq-base": Flag("rope_freq_base", "float"),
        "--rope-freq-scale": Flag("rope_freq_scale", "float"),
        "--pooling": Flag(
            "pooling_type",
            "choice",
            "llama_pooling_type",
            MappingProxyType(
                {
                    name: f"LLAMA_POOLING_TYPE_{name.upper()}"
                    for name in ("none", "mean", "cls", "last", "rank")
                }
            ),
        ),
        "--reasoning-format": Flag(
            "reasoning_format",
            "choice",
            "common_reasoning_format",
            MappingProxyType(
                {
                    "none": "COMMON_REASONING_FORMAT_NONE",
                    "deepseek": "COMMON_REASONING_FORMAT_DEEPSEEK",
                    "auto": "COMMON_REASONING_FORMAT_AUTO",
                }
            ),
        ),
        "--log-verbosity": Flag("verbosity", "int"),
    }
)

_FIXED = MappingProxyType(
    {"--no-mmap": "LLAMA_LOAD_MODE_NONE", "--mlock": "LLAMA_LOAD_MODE_MMAP_MLOCK"}
)
"""Flags without a value that nonetheless set an enumeration."""

SHORT: MappingProxyType[str, str] = MappingProxyType(
    {
        "-t": "--threads",
        "-tb": "--threads-batch",
        "-b": "--batch-size",
        "-ub": "--ubatch-size",
        "-ngl": "--gpu-layers",
        "--n-gpu-layers": "--gpu-layers",
        "-mg": "--main-gpu",
        "-sm": "--split-mode",
        "-fa": "--flash-attn",
        "-ctk": "--cache-type-k",
        "-ctv": "--cache-type-v",
        "-cram": "--cache-ram",
        "-kvu": "--kv-unified",
        "-mm": "--mmproj",
        "-lv": "--log-verbosity",
        "--verbosity": "--log-verbosity",
    }
)

OWNED: MappingProxyType[str, str] = MappingProxyType(
    {
        "--model": "model_path",
        "-m": "model_path",
        "--ctx-size": "context",
        "-c": "context",
        "--parallel": "slots",
        "-np": "slots",
        "--chat-template": "chat_template",
        "--chat-template-file": "chat_template",
        "--embeddings": "embeddings",
        "--alias": "alias",
        "-a": "alias",
    }
)
"""Flags that are fields of `EmbeddedSpec`, so that they are decided in one place."""

FORBIDDEN: MappingProxyType[str, str] = MappingProxyType(
    {
        "--host": "the embedded server listens on loopback only",
        "--port": "the embedded server takes a free port; ask the lease for it",
        "--api-key": "the embedded server makes a key of its own; ask the lease for it",
    }
)


def read(arguments: Sequence[str]) -> tuple[Setting, ...]:
    """Settings from llama-server flags, such as `("--flash-attn", "on", "--no-warmup")`.

    Raises:
        UnknownSetting: a flag that is not in the table, that belongs to a field of the spec, or
            whose value is missing or of the wrong kind.
    """
    settings: list[Setting] = []
    rest = [part for word in arguments for part in _split(str(word))]
    while rest:
        given = rest.pop(0)
        name = SHORT.get(given, given)
        flag = FLAGS.get(name)
        if flag is None:
            raise _unknown(given)
        if flag.kind in ("on", "off"):
            settings.append(Setting(flag.path, flag.kind == "on"))
        elif name in _FIXED:
            settings.append(Setting(flag.path, _FIXED[name], flag.enum))
        elif not rest:
            raise UnknownSetting(f"the flag {given} needs a value", name=given)
        else:
            settings.append(_valued(given, flag, rest.pop(0)))
    return tuple(settings)


def _split(word: str) -> list[str]:
    name, equals, value = word.partition("=")
    return [name, value] if equals and name.startswith("--") else [word]


def _valued(given: str, flag: Flag, word: str) -> Setting:
    if flag.kind == "choice":
        if word not in flag.choices:
            raise UnknownSetting(
                f"{given} is one of {', '.join(flag.choices)}, not {word!r}",
                name=given,
                near=tuple(flag.choices),
            )
        return Setting(flag.path, flag.choices[word], flag.enum)
    try:
        value = {"int": int, "float": float, "text": str}[flag.kind](word)
    except ValueError as error:
        kind = "a whole number" if flag.kind == "int" else "a number"
        raise UnknownSetting(f"{given} takes {kind}, not {word!r}", name=given) from error
    return Setting(flag.path, value)


def _unknown(given: str) -> UnknownSetting:
    if given in OWNED:
        return UnknownSetting(
            f"{given} is the field {OWNED[given]!r} of EmbeddedSpec; set it there", name=given
        )
    if given in FORBIDDEN:
        return UnknownSetting(f"{given} cannot be set: {FORBIDDEN[given]}", name=given)
    near = describe_choices((*FLAGS, *SHORT, *OWNED), given)
    return UnknownSetting(
        f"the embedded engine knows no flag {given!r}"
        + (f"; the nearest are {', '.join(near)}" if near else ""),
        hint="run llama-server yourself for flags that enginekit does not pass on",
        name=given,
        near=near,
    )

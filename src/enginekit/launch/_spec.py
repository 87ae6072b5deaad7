"""What an embedded server is asked to be, and the numbers chosen for what was left open."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from enginekit.errors import ConfigError, ModelFileError
from enginekit.launch._flags import Setting, read
from enginekit.launch.modelfile import Header

CONTEXT = 8192
"""Tokens a slot gets when the spec leaves the context open, or the trained length if shorter."""
LEAST_CONTEXT = 2048
MOST_SLOTS = 4
CACHE_RAM_MIB = 1024
"""Host memory for prompts of idle slots; llama.cpp's own default is 8192."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSpec:
    """An embedded server. Processes of one user that ask for an equal spec share one server.

    Attributes:
        model_path: the GGUF file.
        context: tokens per slot; None takes the trained length, at most 8192.
        slots: requests that run at the same time; None takes one per core, at most four, fewer if
            their caches would fill more than half of the free memory.
        threads: that compute; None takes one per physical core this process may use.
        chat_template: a Jinja template, or the path of one, instead of the model's own. Off by
            default, because answers then depend on it; the lease's notes say so.
        embeddings: serve embeddings instead of chat.
        extra_args: further llama-server flags, such as `("--flash-attn", "on")`.
        alias: the name the server gives the model; None takes the file's.
    """

    model_path: Path
    context: int | None = None
    slots: int | None = None
    threads: int | None = None
    chat_template: str | None = None
    embeddings: bool = False
    extra_args: tuple[str, ...] = ()
    alias: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_path", Path(self.model_path))
        for name in ("context", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def template_text(self) -> str | None:
        """The chat template itself, read from its file when it is a path."""
        template = self.chat_template
        if template is None or "{" in template:
            return template
        try:
            return Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise ConfigError(
                f"chat_template: {template} cannot be read: {why}",
                hint="name a Jinja file, or leave chat_template unset to use the model's own",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The numbers a spec came to.

    Attributes:
        context: tokens per slot. The server's whole context is this times `slots`; the cache is
            not unified, so that one long request cannot starve the others.
        pooling: how token vectors become one, where an embedding model does not say itself.
        notes: one sentence per thing the caller may not expect.
    """

    context: int
    slots: int
    threads: int
    pooling: str = ""
    notes: tuple[str, ...] = ()


def usable_cores(physical: int | None, allowed: int | None, quota: float | None) -> int:
    """Cores worth a thread of their own.

    A computing thread waits for all others after each operation, so one without a core of its own
    holds up the rest: a container with two of 64 cores' time must not run 64.

    Args:
        physical: cores of the machine, two threads of one counting once.
        allowed: logical processors that the affinity leaves.
        quota: processors' worth of time that the control group leaves.
    """
    least = min(found for found in (physical or allowed or 1, allowed or physical or 1) if found)
    return max(1, least if quota is None else min(least, ceil(quota)))


def choose(spec: EmbeddedSpec, header: Header, *, cores: int, memory: int) -> Chosen:
    """Fill in what the spec left open.

    Args:
        cores: physical cores this process may use.
        memory: bytes free for the cache, after the weights.
    """
    trained = header.trained_context or CONTEXT
    notes: list[str] = []
    pooling = ""
    context = spec.context if spec.context is not None else min(trained, CONTEXT)
    if context > trained:
        notes.append(
            f"the context of {context} tokens was asked for; the model was trained for {trained}, "
            "and the server uses that"
        )
        context = trained
    slots = spec.slots if spec.slots is not None else max(1, min(MOST_SLOTS, cores))
    per_token = header.kv_bytes_per_token
    if per_token:
        room = memory // 2
        if spec.slots is None:
            slots = max(1, min(slots, room // (per_token * context)))
        while (
            spec.context is None and context > LEAST_CONTEXT and per_token * context * slots > room
        ):
            context //= 2
        if spec.context is None and context < min(trained, CONTEXT):
            notes.append(f"the context is {context} tokens because little memory is free")
    if spec.chat_template is not None:
        notes.append("the model's chat template is replaced by the configured one")
    if spec.embeddings:
        notes.append("this server embeds and does not chat")
        if header.number("pooling_type") is None and "--pooling" not in spec.extra_args:
            pooling = "mean"
            notes.append("the model names no pooling: the mean of its token vectors is taken")
    return Chosen(
        context=context,
        slots=slots,
        threads=spec.threads or max(1, cores),
        pooling=pooling,
        notes=tuple(notes),
    )


def flags(spec: EmbeddedSpec, chosen: Chosen) -> tuple[str, ...]:
    """The flags in llama-server's words, as a person would type them (without host, port, key)."""
    words = [
        "--model", str(spec.model_path),
        "--alias", alias(spec),
        "--ctx-size", str(chosen.context * chosen.slots),
        "--parallel", str(chosen.slots),
        "--kv-unified" if spec.embeddings else "--no-kv-unified",
        "--threads", str(chosen.threads),
        "--cache-ram", str(CACHE_RAM_MIB),
        "--jinja",
        "--no-warmup",
        "--no-ui",
        "--offline",
    ]  # fmt: skip
    if spec.embeddings:
        words += ["--embeddings", "--batch-size", str(chosen.context)]
        words += ["--ubatch-size", str(chosen.context)]
        if chosen.pooling:
            words += ["--pooling", chosen.pooling]
    template = spec.chat_template
    if template is not None:
        words += ["--chat-template" if "{" in template else "--chat-template-file", template]
    return (*words, *spec.extra_args)


def settings(spec: EmbeddedSpec, chosen: Chosen) -> tuple[Setting, ...]:
    """The same as xllamacpp's attributes. The user's own flags come last and win."""
    made = [
        Setting("model.path", str(spec.model_path)),
        Setting("model_alias", [alias(spec)]),
        Setting("n_ctx", chosen.context * chosen.slots),
        Setting("n_parallel", chosen.slots),
        # With a cache per slot llama.cpp splits texts of unequal length over several batches and
        # pools only the last piece of the longer ones: wrong vectors, and no word about it.
        Setting("kv_unified", spec.embeddings),
        Setting("cpuparams.n_threads", chosen.threads),
        Setting("cpuparams_batch.n_threads", chosen.threads),
        Setting("cache_ram_mib", CACHE_RAM_MIB),
        Setting("use_jinja", True),
        # The first request warms up as well, and only once.
        Setting("warmup", False),
        Setting("ui", False),
        Setting("offline", True),
        Setting("port", 0),
        # A web page must not be able to read answers even if it learns the key.
        Setting("cors_origins", "null"),
        Setting("cors_origins_explicit", True),
    ]
    if spec.embeddings:
        made += [
            Setting("embedding", True),
            Setting("n_batch", chosen.context),
            Setting("n_ubatch", chosen.context),
        ]
        if chosen.pooling:
            made += read(("--pooling", chosen.pooling))
    template = spec.template_text
    if template is not None:
        made.append(Setting("chat_template", template))
    return (*made, *read(spec.extra_args))


def existing(path: Path) -> Path:
    """The file itself, links followed, so that two names of one file share a server.

    Raises:
        ModelFileError: there is no such file.
    """
    path = path.expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path} {what}", hint="give the path of a GGUF file", field="path")
    return path.resolve()


def alias(spec: EmbeddedSpec) -> str:
    """The name the server gives the model."""
    return spec.alias or spec.model_path.stem

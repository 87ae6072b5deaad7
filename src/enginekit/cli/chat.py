"""`enginekit chat`: one question, or a conversation."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from enginekit.cli import errors
from enginekit.cli.options import Connection
from enginekit.cli.output import ProgressDisplay, print_json, stderr
from enginekit.errors import ConfigError, EngineKitError
from enginekit.kit.client import Client
from enginekit.types import UNSET, ChatRequest, Message, Sampling


def chat(
    *prompt: str,
    connection: Connection | None = None,
    system: Annotated[str | None, Parameter(name=["--system", "-s"])] = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    json: bool = False,
    receipt: bool = False,
) -> int:
    """Ask a model something. Without a prompt: read one from a pipe, or start a conversation.

    With both, what came through the pipe goes before the prompt.

    Parameters
    ----------
    prompt
        The question; several words need no quotes.
    system
        A system message.
    temperature
        Sampling temperature; 0 is greedy. Unset: the server's default.
    max_tokens
        Upper limit of generated tokens. Unset: until the model stops.
    json
        Print one JSON object with text, usage, finish reason and receipt instead of streaming.
    receipt
        Say on stderr what became of each field of the request.
    """
    connection = connection or Connection()
    progress = ProgressDisplay()
    client = Client(connection.settings(), progress=progress, where="enginekit chat")
    sampling = Sampling(
        temperature=UNSET if temperature is None else temperature,
        max_tokens=UNSET if max_tokens is None else max_tokens,
    )
    messages = [Message(role="system", content=_text(system))] if system else []
    try:
        progress.start(None, "reading standard input")
        piped = _piped(wanted=not prompt)
        progress.finish()
        if piped is None and not prompt:
            return _converse(client, messages, sampling, progress, receipt)
        question = "\n\n".join(part for part in (piped, _text(" ".join(prompt))) if part)
        if not question:
            errors.show_usage("there is nothing to ask: the prompt is empty", ["chat"])
            return errors.USAGE
        messages.append(Message(role="user", content=question))
        request = _request(messages, sampling)
        if json:
            _whole(client, request, progress)
        else:
            _stream(client, request, progress, receipt)
        return 0
    finally:
        progress.finish()
        client.close()


def _piped(*, wanted: bool) -> str | None:
    """What comes through a pipe or from a file on standard input; None if there is neither.

    Other kinds of input (`/dev/null`, a socket that a service manager left open) are read only if
    they are all that can hold a prompt.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    if not wanted:
        try:
            kind = os.fstat(sys.stdin.fileno()).st_mode
        except (OSError, ValueError):
            return None
        if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
            return None
    raw = getattr(sys.stdin, "buffer", None)
    return (sys.stdin.read() if raw is None else _decoded(raw.read())).strip()


def _decoded(raw: bytes) -> str:
    """Text in UTF-8, or in the locale's encoding."""
    for encoding in ("utf-8-sig", sys.stdin.encoding):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    raise ConfigError(f"what came through the pipe is not text in UTF-8 nor {sys.stdin.encoding}")


def _text(word: str) -> str:
    """A word of the command line; under a locale that is not UTF-8 its bytes come as surrogates."""
    if word.isascii():
        return word
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeEncodeError:
        return word
    except UnicodeDecodeError:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError("the prompt is not text in UTF-8") from None
        return word


def _request(messages: list[Message], sampling: Sampling) -> ChatRequest:
    return ChatRequest(model="", messages=tuple(messages), sampling=sampling)


def _whole(client: Client, request: ChatRequest, progress: ProgressDisplay) -> None:
    reply = client.chat(request)
    progress.finish()
    print_json(
        {
            "text": reply.text,
            "reasoning": reply.reasoning or None,
            "finish_reason": reply.finish_reason,
            "model": reply.end.model,
            "usage": reply.usage._asdict() if reply.usage else None,
            "timings": reply.end.timings._asdict() if reply.end.timings else None,
            "receipt": reply.receipt.to_dict(),
        }
    )


def _stream(client: Client, request: ChatRequest, progress: ProgressDisplay, receipt: bool) -> str:
    """Print a reply as it comes; returns its text."""
    if client.engine is None:
        progress.start(None, "connecting")
    stream = client.stream(request)
    progress.finish()
    text: list[str] = []
    out = sys.stdout
    thinking = False
    end = None
    try:
        for chunk in stream:
            if chunk.reasoning:
                thinking = True
                stderr.print(chunk.reasoning, end="", style="dim", markup=False)
            if chunk.text:
                if thinking:
                    stderr.print()
                    thinking = False
                out.write(chunk.text)
                out.flush()
                text.append(chunk.text)
            if chunk.end is not None:
                end = chunk.end
    finally:
        stream.close()
        if text and not text[-1].endswith("\n"):
            out.write("\n")
            out.flush()
    if end is not None and end.finish_reason == "length":
        stderr.print("(cut: the limit of generated tokens or the context was reached)")
    if receipt:
        _show_receipt(stream.receipt, end)
    return "".join(text)


def _show_receipt(receipt: Any, end: Any) -> None:
    version = f" {receipt.engine_version}" if receipt.engine_version else ""
    sys.stderr.write(f"{receipt.engine}{version} at {receipt.url}\n")
    for entry in receipt.entries:
        note = f"  {entry.note}" if entry.note else ""
        sys.stderr.write(f"  {entry.field:<22} {entry.outcome:<10} {entry.wire}{note}\n")
    for name, value in receipt.defaults.items():
        sys.stderr.write(f"  {name:<22} {'default':<10} {value}\n")
    for line in (*receipt.notes, *receipt.repairs, *(end.repairs if end else ())):
        sys.stderr.write(f"  note: {line}\n")
    if end is not None and end.usage is not None:
        sys.stderr.write(
            f"  {end.usage.prompt_tokens} prompt + {end.usage.completion_tokens} generated tokens\n"
        )


def _read_line() -> str:
    """A line from the person; the prompt never goes into a pipe on stdout."""
    if sys.stdout.isatty():
        return input("> ").strip()
    sys.stderr.write("> ")
    sys.stderr.flush()
    return input().strip()


def _converse(
    client: Client,
    messages: list[Message],
    sampling: Sampling,
    progress: ProgressDisplay,
    receipt: bool,
) -> int:
    """Questions and answers until end of input. Ctrl-C stops an answer, not the conversation."""
    progress.start(None, "connecting")
    client.connect()
    progress.finish()
    route = client.route
    if route is not None:
        sys.stderr.write(
            f"{route.engine.name}, {route.model or 'its own model'}, at "
            f"{route.engine.target.base_url} (end with Ctrl-D)\n"
        )
    try:
        import readline  # noqa: F401 - gives input() line editing and history
    except ImportError:
        pass
    while True:
        try:
            line = _read_line()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return 0
        if not line:
            continue
        messages.append(Message(role="user", content=line))
        try:
            text = _stream(client, _request(messages, sampling), progress, receipt)
        except KeyboardInterrupt:
            sys.stderr.write("(stopped)\n")
            messages.pop()
            continue
        except EngineKitError as error:
            errors.show(error)
            messages.pop()
            continue
        messages.append(Message(role="assistant", content=text))

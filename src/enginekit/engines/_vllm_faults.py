"""vLLM's refusals by text and status, for every server that hands them on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enginekit.engines._fault import Case, Fault, overflow_facts, retry_facts
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineFault,
    ModelNotFound,
    Overloaded,
    Unauthorized,
    Unsupported,
)

TOOL_FLAGS: Final = "--enable-auto-tool-choice --tool-call-parser NAME"


def _feature(name: str) -> Any:
    return lambda fault, match: {"feature": name, "rule": f"vllm.{name}"}


def missing_model(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """The name asked for, and those the server offers in its own message."""
    offered = re.search(r"Valid aliases: (.+?)\.?$", fault.message)
    near = tuple(name.strip() for name in offered[1].split(",")) if offered else ()
    return {"model": match["model"] if match is not None else "", "near": near}


def _prompt_and_output(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    assert match is not None
    wanted = int(match["prompt"]) + int(match["output"])
    return {"limit": int(match["limit"]), "requested": wanted}


_SHORTEN: Final = "shorten the conversation, or start the server with a larger --max-model-len"

FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=Overloaded,
        name="queue",
        status=(503,),
        text="currently busy|queue",
        facts=retry_facts,
        says="its queue is full",
    ),
    Case(
        error=ContextOverflow,
        name="output",
        text=r"is too large: (?P<output>\d+)\. this model's maximum context length is "
        r"(?P<limit>\d+) tokens and your request has (?P<prompt>\d+) input tokens",
        facts=_prompt_and_output,
        hint="ask for fewer tokens, or start the server with a larger --max-model-len",
    ),
    Case(
        error=ContextOverflow,
        name="characters",
        text=r"maximum context length is (?P<limit>\d+) tokens.*contains \d+ characters",
        facts=overflow_facts,
        hint=_SHORTEN,
    ),
    Case(
        error=ContextOverflow,
        name="prompt",
        text=r"prompt \(length (?P<requested>\d+)\).*maximum model length of (?P<limit>\d+)",
        facts=overflow_facts,
        hint=_SHORTEN,
    ),
    Case(
        error=ContextOverflow,
        name="context",
        text=r"maximum (?:context|model) length (?:is |of )(?P<limit>\d+)"
        r"(?:.*?(?:contains at least|requested|contains|request has|prompt of) (?P<requested>\d+))?",
        facts=overflow_facts,
        hint=_SHORTEN,
    ),
    Case(
        error=ContextOverflow,
        name="max-tokens",
        text=r"max_tokens=(?P<requested>\d+) cannot be greater than max_model_len=(?P<limit>\d+)",
        facts=overflow_facts,
        hint="ask for fewer tokens, or start the server with a larger --max-model-len",
    ),
    Case(
        error=ContextOverflow,
        name="context-param",
        param="input_tokens",
        facts=overflow_facts,
        hint=_SHORTEN,
    ),
    Case(
        error=ModelNotFound,
        name="model",
        status=(404,),
        text=r"the model `(?P<model>[^`]*)` does not exist",
        facts=missing_model,
        hint="a LoRA adapter is served under its own name: --enable-lora --lora-modules NAME=PATH",
    ),
    Case(
        error=Unsupported,
        name="tools",
        # The last is that of versions up to 0.5, which know no parsers at all.
        text="requires --(?:enable-auto-tool-choice|tool-call-parser)|only named tools are supported",
        facts=_feature("tools"),
        hint=f"start the server with {TOOL_FLAGS}",
    ),
    Case(
        error=Unsupported,
        name="required",
        # Before 0.8.3, by a validator whose message goes on with the request: past the second
        # brace it is the caller's text.
        text=r"^[^{]*(?:\{[^{]*)?tool_choice\W+must either be a named tool"
        '|tool_choice = "required" is not supported',
        facts=_feature("tool_choice_required"),
        hint="update vLLM to 0.8.3 or later",
    ),
    Case(
        error=Unsupported,
        name="images",
        text="is not a multimodal model|does not support (?:image|multimodal)",
        facts=_feature("images"),
        hint="serve a model that sees",
    ),
    Case(
        error=Unsupported,
        name="infill",
        text="suffix is (?:only|not) ",
        facts=_feature("fim"),
        hint="serve a model with fill-in-the-middle",
    ),
    Case(
        error=Unsupported,
        name="generate",
        status=(400,),
        text="does not support the 'generate' task",
        facts=_feature("chat"),
        says="the model embeds or ranks and does not generate",
        hint="name a model that generates",
    ),
    Case(error=Unsupported, name="flag", status=(400,), text=r"requires --|does not support"),
    Case(
        error=EngineDied,
        name="engine-dead",
        status=(500,),
        text="enginecore encountered|enginedead|cannot schedule new futures",
        says="its engine is gone; the server ends by itself after this",
        hint="look at the server's log and start it again",
    ),
    Case(
        error=BadRequest,
        name="grammar",
        text="grammar error|invalid grammar specification|invalid regex",
        says="what the answer should be held to cannot be compiled",
        hint="mend the pattern, grammar or schema; a keyword that the backend lacks has to go, or "
        "the server needs another backend: --structured-outputs-config",
    ),
    Case(error=Unauthorized, name="unauthorized", status=(401,)),
    Case(
        error=BadRequest,
        name="schema",
        status=(400,),
        type="Bad Request",
        says="the request's form",
    ),
    Case(error=EngineFault, name="fault", status=(500,)),
)

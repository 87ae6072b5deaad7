"""What Ollama's refusals mean, row by row; the first row that matches decides.

Ollama answers `{"error": "text"}`; a runner's own JSON comes as text inside that text and has been
unwrapped by then. An error line inside a stream goes through the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enginekit.engines._fault import Case, Fault, retry_facts
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineFault,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Unauthorized,
    Unsupported,
)

_FEATURES: Final[Mapping[str, str]] = {
    "tools": "tools",
    "thinking": "reasoning",
    "insert": "fim",
    "chat": "chat",
    "generate": "completion",
    "embeddings": "embeddings",
    "vision": "images",
    "audio": "audio",
    "multimodal": "images",
}
"""Ollama's names of what a model may lack, and ours."""

_LOG: Final = "the server's log has more (journalctl -u ollama, or the output of ollama serve)"


def _lacks(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    word = match["what"].lower() if match is not None else ""
    return {"feature": _FEATURES.get(word, word), "rule": f"ollama.model.lacks_{word}"}


def _feature(feature: str, rule: str) -> Any:
    def facts(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
        return {"feature": feature, "rule": rule}

    return facts


def _final(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """Trying again would meet the same fault."""
    return {"retryable": False}


def _load_timeout(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return {"phase": "load"}


FAULTS: Final[tuple[Case, ...]] = (
    Case(
        error=Unsupported,
        name="cloud-disabled",
        status=(403,),
        text="cloud is disabled",
        facts=_feature("cloud", "ollama.model.cloud"),
        says="a name that ends in cloud runs on ollama.com and not on this server",
        hint="use a local model: ollama list",
    ),
    Case(
        error=Unauthorized,
        name="host-or-origin",
        status=(403,),
        text=r"\A\Z",
        says="it refuses the Host or Origin header that it saw",
        hint="let the server listen for other names: OLLAMA_HOST=0.0.0.0 (and OLLAMA_ORIGINS)",
    ),
    Case(
        error=Unauthorized,
        name="cloud-sign-in",
        status=(401,),
        says="the model runs on ollama.com, which wants an account",
        hint="ollama signin",
    ),
    Case(
        error=Overloaded,
        name="busy",
        text="server busy",
        facts=retry_facts,
        says="too many requests wait for a model to be loaded",
        hint="raise OLLAMA_MAX_QUEUE, or OLLAMA_MAX_LOADED_MODELS if models push each other out",
    ),
    Case(
        error=ContextOverflow,
        name="runner-overflow",
        text=r"request \((?P<requested>\d+) tokens\) exceeds the available context size "
        r"\((?P<limit>\d+) tokens\)",
        hint="shorten the prompt, or ask for a larger window: context_window=…",
    ),
    Case(
        error=ContextOverflow,
        name="overflow",
        text=r"longer than the context length|exceeds? (the )?(maximum |available )?context",
        hint="shorten the prompt, or ask for a larger window: context_window=…",
    ),
    Case(
        error=ModelNotFound,
        name="model-absent",
        status=(404, 400, 200),
        text=r"model ['\"](?P<model>[^'\"]*)['\"] not found",
        hint="ollama list shows the models there are; ollama pull NAME fetches one",
    ),
    Case(
        error=Unsupported,
        name="model-lacks",
        status=(400, 500, 501),
        text=r"does not support (?P<what>tools|thinking|insert|chat|generate|embeddings|vision|audio"
        r"|multimodal)",
        facts=_lacks,
        says="the model cannot do this",
        hint="ollama show NAME lists what a model can do",
    ),
    Case(
        error=Unsupported,
        name="model-lacks-images",
        text="image input is not supported",
        facts=_feature("images", "ollama.model.lacks_vision"),
        says="the model takes no images",
        hint="ollama show NAME lists what a model can do",
    ),
    Case(
        error=Unsupported,
        name="old-format",
        status=(400,),
        text=r"request\.format of type string",
        facts=_feature("json_schema", "ollama.constraint.since"),
        says="this version knows JSON without a schema only",
        hint="Ollama 0.5.0 and later take a schema",
    ),
    Case(
        error=Unsupported,
        name="cannot-together",
        status=(400, 500),
        text="is not supported with|not currently supported|cannot run this remote model",
        facts=_feature("combination", "ollama.combination"),
    ),
    Case(
        error=BadOutput,
        name="unreadable-output",
        text="does not match the expected",
        says="the server could not read what the model wrote by the model's own template",
        hint="try again, or use a stronger model",
    ),
    Case(
        error=EngineFault,
        name="load-failed",
        text=r"(process has terminated|process no longer running):|error loading model",
        facts=_final,
        says="the model could not be loaded",
        hint=f"ollama pull it again; {_LOG}",
    ),
    Case(
        error=EngineFault,
        name="no-memory",
        text="requires more system memory|unable to load full model|out of memory",
        facts=_final,
        says="the model does not fit into memory",
        hint="use a smaller model or quantization, or a smaller context_window",
    ),
    Case(
        error=EngineTimeout,
        name="load-timeout",
        text="timed out waiting for ",
        facts=_load_timeout,
        says="its model runner did not start in time",
        hint="raise OLLAMA_LOAD_TIMEOUT",
    ),
    Case(
        error=EngineDied,
        name="runner-died",
        text="encountered while running the model|has unexpectedly stopped",
        says="the process that runs the model died; the next request starts it again",
        hint=_LOG,
    ),
    Case(
        error=BadRequest,
        name="bad-option",
        text=r"\Aoption \"|\Ainvalid format: |\Afailed to parse |cannot use both|\Aunknown |"
        r"requires --jinja|unrecognized schema|conversion failed",
    ),
)

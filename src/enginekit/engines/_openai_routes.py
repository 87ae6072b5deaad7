"""The routes beside chat that several engines share: asking, embedding, reranking, scraping."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from enginekit.engine import Answer, Engine, Operation
from enginekit.engines._json import parse_json
from enginekit.engines._openai_fields import read_usage
from enginekit.engines._params import Draft
from enginekit.errors import BadRequest, EngineError, MalformedReply, Unsupported
from enginekit.types import UNSET, Embeddings, EmbedRequest, Ranking, RerankRequest, Score

LONG = 600.0
"""Seconds a call may take that computes something: embedding, reranking."""


def ask(
    engine: Engine,
    method: Literal["GET", "POST"],
    path: str,
    json: Any = None,
    *,
    timeout: float = 10.0,
) -> Operation[Any]:
    """One call, its failure raised, its body parsed as JSON.

    Raises what `engine.failure` makes of a refusal, and MalformedReply for a body that is no JSON.
    """
    answer: Answer = yield engine.call(method, path, json, timeout=timeout)
    if not answer.ok:
        raise engine.failure(answer.status, answer.headers, answer.body, path=path)
    try:
        return parse_json(answer.body)
    except ValueError as error:
        shown = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(
            f"{engine.name} at {engine.target.base_url} answered {path} with no JSON: {shown}",
            engine=engine.name,
            url=engine.target.base_url,
            status=answer.status,
        ) from error


NEVER_RENDERED: Final = "{{ messages }}"
NEVER_SAMPLED: Final = -1.0
"""A temperature that no version of vLLM samples with: refused after everything else was looked at."""


def takes_tools(engine: Engine, model: str, path: str) -> Operation[bool | None]:
    """Whether a vLLM server has a tool parser; None when its answer is unclear.

    Raises what may be otherwise another time: EngineTimeout, Unreachable, EngineLoading, Overloaded.

    The request can be answered by nothing but a refusal, and which one tells. The server looks at
    the model's name first, then for the parser, then at the chat template that the request brings
    (refused unless it was started to trust one), and last, before anything is queued, at the
    sampling parameters: the temperature is negative. No token is made, and nothing of a caller's is
    in it. Read in vLLM 0.10 (serving_chat.py) and seen on 0.32.0.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template": NEVER_RENDERED,
        "temperature": NEVER_SAMPLED,
        "max_tokens": 1,
    }
    try:
        yield from ask(engine, "POST", path, body)
    except Unsupported as error:
        return False if error.feature == "tools" else None
    except BadRequest as error:
        return True if re.search("chat template|temperature", error.message.lower()) else None
    except EngineError as error:
        if error.retryable:  # it said nothing of the server: ask again another time
            raise
        return None
    return True


def malformed(engine: Engine, path: str, value: Any, error: Exception) -> MalformedReply:
    """A reply that is JSON, but not what its route promises."""
    return MalformedReply(
        f"{engine.name} at {engine.target.base_url} answered {path} with something else than its "
        f"protocol says ({error!r}): {str(value)[:200]}",
        engine=engine.name,
        url=engine.target.base_url,
    )


def embed(
    engine: Engine, request: EmbedRequest, draft: Draft, path: str = "/v1/embeddings"
) -> Operation[Embeddings]:
    """Send a drafted embeddings request; vectors come back in the order of the texts.

    Accepts lists of floats and base64 of little-endian float32, whatever was asked for.
    """
    value = yield from ask(engine, "POST", path, draft.body, timeout=LONG)
    try:
        items = sorted(value["data"], key=lambda item: item.get("index", 0))
        vectors = [read_vector(item["embedding"]) for item in items]
        if len(vectors) != len(request.texts):
            raise ValueError(f"{len(vectors)} vectors for {len(request.texts)} texts")
        if not all(map(any, vectors)):
            raise ValueError("a vector of zeros has no direction: the model makes no embeddings")
        usage = read_usage(value["usage"]) if value.get("usage") else None
        return Embeddings(
            vectors=vectors, receipt=draft.receipt, model=value.get("model"), usage=usage
        )
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise malformed(engine, path, value, error) from error


def read_vector(value: str | Sequence[float]) -> Sequence[float]:
    """A vector as floats. Raises ValueError or struct.error for anything else."""
    if isinstance(value, str):
        raw = base64.b64decode(value, validate=True)
        return struct.unpack(f"<{len(raw) // 4}f", raw)
    if value and not isinstance(value[0], int | float):
        raise ValueError("a vector per token came where one per text was asked for")
    return value


def rerank(
    engine: Engine, request: RerankRequest, draft: Draft, path: str = "/v1/rerank"
) -> Operation[Ranking]:
    """Send a drafted rerank request; scores come back best first."""
    value = yield from ask(engine, "POST", path, draft.body, timeout=LONG)
    try:
        rows = value["results"] if isinstance(value, Mapping) else value
        scores = [Score(row["index"], _relevance(row)) for row in rows]
        model = value.get("model") if isinstance(value, Mapping) else None
    except (KeyError, TypeError, AttributeError) as error:
        raise malformed(engine, path, value, error) from error
    scores.sort(key=lambda score: score.score, reverse=True)
    if request.top_n is not UNSET:
        scores = scores[: request.top_n]
    return Ranking(scores=scores, receipt=draft.receipt, model=model)


def _relevance(row: Mapping[str, Any]) -> float:
    value = row.get("relevance_score", row.get("score"))
    if value is None:
        raise KeyError("relevance_score")
    return float(value)


def read_metrics(body: bytes, *, mean: Sequence[str] = ()) -> dict[str, float]:
    """Prometheus text as name to value; series of one name (several labels) are summed.

    Those named in `mean` are averaged instead: fractions of several engines do not add up.
    """
    found: dict[str, list[float]] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        if not line or line.startswith("#"):
            continue
        labelled = "{" in line
        name, _, rest = line.partition("{" if labelled else " ")
        number = (rest.rpartition("}")[2] if labelled else rest).split()
        try:
            value = float(number[0])
        except (IndexError, ValueError):
            continue
        if value == value:
            found.setdefault(name.strip(), []).append(value)
    return {
        name: sum(values) / (len(values) if name in mean else 1) for name, values in found.items()
    }

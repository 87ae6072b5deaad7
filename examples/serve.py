"""A FastAPI endpoint that streams a reply as it is generated.

    pip install 'enginekit[langchain,embedded]' fastapi uvicorn
    python examples/serve.py 8080
    curl -N localhost:8080/chat -H 'content-type: application/json' -d '{"text": "Hi."}'

Server-sent events: `token` for each piece of text, then one `done` with the token counts, or one
`failed` with the error's own words. A client that leaves stops the generation on the engine as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from enginekit.errors import EngineKitError
from enginekit.langchain import EngineKitChat

model = EngineKitChat(temperature=0, max_tokens=200)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Find or start the engine before the first request waits for it."""
    await model.aconnect()
    yield
    await model.aclose()


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What a client sends."""

    text: str


def event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@app.post("/chat")
async def chat(question: Question) -> StreamingResponse:
    """Stream the reply to one question."""

    async def events() -> AsyncIterator[str]:
        usage = None
        try:
            async for chunk in model.astream(question.text):
                if chunk.text:
                    yield event("token", chunk.text)
                usage = chunk.usage_metadata or usage
        except EngineKitError as error:
            yield event("failed", str(error))
        else:
            yield event("done", usage)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/engine")
async def engine() -> dict[str, Any]:
    """Which engine answers, and how much it can read."""
    profile = model.profile or {}
    facts = model.client.engine
    return {"engine": facts and facts.name, "max_input_tokens": profile.get("max_input_tokens")}


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    uvicorn.run(app, host="127.0.0.1", port=port)

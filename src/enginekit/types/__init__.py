"""What crosses an engine's boundary: requests in, chunks and replies out, and the receipt.

Everything here is data. Nothing depends on an engine, a client library or a framework.

A field the caller left alone is `UNSET`, which is not `None`: it is not sent, and the receipt says
which default of the server is in effect instead.
"""

from __future__ import annotations

from enginekit.types.messages import (
    AudioPart,
    Constraint,
    FilePart,
    ImagePart,
    JsonSchema,
    Message,
    Part,
    Role,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from enginekit.types.receipt import Entry, Outcome, Receipt
from enginekit.types.replies import (
    Chunk,
    Embeddings,
    End,
    FinishReason,
    Ranking,
    Reply,
    Score,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from enginekit.types.requests import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Request,
    RerankRequest,
    Sampling,
)
from enginekit.types.unset import UNSET, Maybe

__all__ = [
    "UNSET",
    "AnyRequest",
    "AudioPart",
    "ChatRequest",
    "Chunk",
    "CompletionRequest",
    "Constraint",
    "EmbedRequest",
    "Embeddings",
    "End",
    "Entry",
    "FilePart",
    "FinishReason",
    "ImagePart",
    "JsonSchema",
    "Maybe",
    "Message",
    "Outcome",
    "Part",
    "Ranking",
    "Receipt",
    "Reply",
    "Request",
    "RerankRequest",
    "Role",
    "Sampling",
    "Score",
    "TextPart",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
]

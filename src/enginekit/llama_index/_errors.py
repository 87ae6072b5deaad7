"""Errors of replies, which LlamaIndex's own code catches as ValueError."""

from __future__ import annotations

from enginekit.errors import BadOutput


class BadReply(BadOutput, ValueError):
    """The model's answer is not what was asked for: no call, broken arguments, no such object.

    `partial` holds what the model wrote.
    """

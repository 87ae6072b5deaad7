"""Fields and keywords of an LLM to our requests: what LlamaIndex says in its own way."""

from __future__ import annotations

from typing import Final

from enginekit.kit.keywords import COMMON_FIELDS, SAMPLING, Dialect
from enginekit.llama_index._settings import FOREIGN
from enginekit.llama_index._tools import to_constraint, to_tools

TEXT_FIELDS: Final = (*COMMON_FIELDS, "suffix", "echo")
TEXT_KEYWORDS: Final = ("model", *SAMPLING, *TEXT_FIELDS, "response_format")
"""Every keyword that a completion without a chat template takes."""

DIALECT: Final = Dialect(foreign=FOREIGN, needless={}, tools=to_tools, constraint=to_constraint)

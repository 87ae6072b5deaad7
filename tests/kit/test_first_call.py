"""The first construction of a process imports what talks to servers, so that no call has to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.langchain.wires import VLLM, Answer
from tests.support.server import Server

PROGRAM = """
import asyncio, sys
from {module} import {cls}
before = set(sys.modules)
model = {cls}(engine="vllm", base_url={url!r}, model="tiny")
constructed = set(sys.modules)
{cls}(engine="vllm", base_url={url!r}, model="tiny")
assert set(sys.modules) == constructed
asyncio.run(model.{acall})
model.{call}
late = {{name.partition(".")[0] for name in set(sys.modules) - constructed}}
late |= {{name for name in set(sys.modules) - constructed if name.startswith("enginekit.drivers")}}
print(sorted(late & {{"aiohttp", "urllib3", "yarl", "multidict"}} | {{n for n in late if "." in n}}))
print("aiohttp" in constructed - before)
"""
CALLS = {
    "enginekit.langchain": ("EngineKitChat", "ainvoke('hi')", "invoke('hi')"),
    "enginekit.llama_index": ("EngineKitLLM", "acomplete('hi')", "complete('hi')"),
}


@pytest.mark.parametrize("module", CALLS)
def test_the_first_call_imports_no_driver(module: str) -> None:
    cls, acall, call = CALLS[module]
    with Server() as server:
        VLLM(server).says(Answer(text=("Hello",)))
        program = PROGRAM.format(module=module, cls=cls, acall=acall, call=call, url=server.url)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    assert done.stderr == ""
    assert done.stdout.split("\n")[0] == "[]"
    # Before anything is constructed it is not there: a program that only imports does not pay.
    assert done.stdout.split("\n")[1] == "True"

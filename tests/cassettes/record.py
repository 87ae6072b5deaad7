"""Make a cassette of a real server: a small proxy under vcrpy, and the tests through it.

    python -m tests.cassettes.record ENGINE URL --server NAME --version V --command LINE \
        [--suite programme | chat | embeddings] [--model scripted] [--other MODEL]

The server runs the scripted weights of `tests/support/scripted.py`. `programme` (the default) asks
what `tests/cassettes/programme.py` asks and makes `tests/cassettes/ENGINE.yaml`; `chat` runs
LangChain's standard suite for chat models and the LlamaIndex contract and makes
`tests/cassettes/standard/ENGINE.yaml`; `embeddings` runs LangChain's suite for embeddings on a
server that embeds and makes `tests/cassettes/standard/ENGINE-embeddings.yaml`. `--other` names a
second model of the server, for the tests that override the model. The key of a server that wants one
is ENGINEKIT_LIVE_KEY. The status is that of the tests; what they may not pass stands, with its
reason, in `tests/standard/marks.py`.

vcrpy sees the proxy's own plain urllib3 requests; the drivers under test talk to the proxy over a
socket, in another process, and are not patched. Requests go to the server one at a time, and of
several equal ones the first answer is kept.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.cassettes.tape import FACTS, HERE, HOPS, STANDARD, key_of

ROOT = HERE.parents[1]
UNSTORED = {"date", "server", "set-cookie", "x-request-id"}
"""Headers of answers that differ each time and that nobody reads."""

SUITES: dict[str, tuple[str, ...]] = {
    "chat": ("tests/standard/test_chat.py", "tests/llama_index/test_contract.py"),
    "embeddings": ("tests/standard/test_embeddings.py",),
}
SUITE_SECONDS = 900.0
ANSWER_SECONDS = 300.0
"""Until a whole answer of the server; past it the test that asked fails."""

PROGRAMME = """
import sys
from enginekit.kit.client import Client
from tests.cassettes.programme import run
wrong = run(Client({{"engine": {engine!r}, "base_url": {url!r}, "model": {model!r}}}))
print(wrong or "as it must be")
sys.exit(bool(wrong))
"""


def recorded(engine: str, suite: str) -> Path:
    """Where a cassette belongs."""
    if suite == "programme":
        return HERE / f"{engine}.yaml"
    return STANDARD / f"{engine}{'' if suite == 'chat' else f'-{suite}'}.yaml"


def proxy(target: str, key: str) -> ThreadingHTTPServer:
    """Forwards each request to `target`, whole, and each answer back, whole."""
    import urllib3

    pool = urllib3.PoolManager(retries=False)
    # vcrpy takes its patches off for a moment whenever it opens a connection.
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {"accept-encoding": "identity", "connection": "close"}
            if body:
                headers["content-type"] = self.headers.get("content-type") or "application/json"
            if key:
                headers["authorization"] = f"Bearer {key}"
            with turn:
                answer = pool.request(
                    self.command,
                    target + self.path,
                    body=body or None,
                    headers=headers,
                    redirect=False,
                    timeout=ANSWER_SECONDS,
                )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (*HOPS, *UNSTORED):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.data)))
            self.end_headers()
            self.wfile.write(answer.data)

        do_GET = do_POST = forward

        def log_message(self, *args: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def asked(told: argparse.Namespace, url: str) -> int:
    """Run the requests that a suite makes, through the proxy at `url`; the status."""
    if told.suite == "programme":
        code = PROGRAMME.format(engine=told.engine, url=url, model=told.model)
        return subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode
    chats = {"URL": url, "MODEL": told.model, "OTHER": told.other}
    embeds = {"URL": url, "EMBED_URL": url, "EMBED_MODEL": told.model}
    named = embeds if told.suite == "embeddings" else chats
    live = {"ENGINE": told.engine, "SCRIPTED": "1", **named}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *SUITES[told.suite], "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, **{f"ENGINEKIT_LIVE_{name}": value for name, value in live.items()}},
        timeout=SUITE_SECONDS,
        check=False,
    ).returncode


def store(path: Path, target: str, told: argparse.Namespace) -> None:
    """Say on the cassette what it is of, and leave out what changes each time."""
    stored = yaml.safe_load(path.read_text("utf-8"))
    facts = {name: getattr(told, name, "") for name in (*FACTS, "model", "other")}
    facts["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept: dict[Any, dict[str, Any]] = {}
    for number, interaction in enumerate(stored["interactions"]):
        request, headers = interaction["request"], interaction["response"]["headers"]
        for name in [name for name in headers if name.lower() in (*HOPS, *UNSTORED)]:
            del headers[name]
        request["headers"] = {}
        request["uri"] = request["uri"].replace(target, "http://server")
        kept.setdefault(number if told.suite == "programme" else key_of(interaction), interaction)
    told_first = {"recorded": {name: value for name, value in facts.items() if value}}
    stored["interactions"] = list(kept.values())
    text = yaml.safe_dump({**told_first, **stored}, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(
        text.replace(str(Path.home()), "/home/user"),
        "utf-8",
    )


def main() -> int:
    """Record one cassette."""
    parser = argparse.ArgumentParser(description="make a cassette of a real server")
    parser.add_argument("engine")
    parser.add_argument("url")
    parser.add_argument("--suite", choices=("programme", *SUITES), default="programme")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--other", default="")
    for name in ("server", "version", "command"):
        parser.add_argument(f"--{name}", required=True)
    told = parser.parse_args()
    key = os.environ.get("ENGINEKIT_LIVE_KEY", "")
    import vcr

    path = recorded(told.engine, told.suite)
    path.unlink(missing_ok=True)
    tape = vcr.VCR(
        record_mode="all",
        filter_headers=["authorization", "user-agent"],
        decode_compressed_response=True,
    )
    with tape.use_cassette(str(path)):
        server = proxy(told.url.rstrip("/"), key)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            status = asked(told, f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            server.server_close()
    store(path, told.url.rstrip("/"), told)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB, status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())

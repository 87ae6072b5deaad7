"""Make a cassette of a real server: a small proxy under vcrpy, and the programme through it.

    python -m tests.cassettes.record ENGINE URL --server NAME --version V --command LINE

The server runs the scripted weights. vcrpy sees the proxy's own plain urllib3 requests; the drivers
under test talk to the proxy over a socket, in another process, and are not patched.
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

HERE = Path(__file__).parent
DROPPED = {"transfer-encoding", "connection", "keep-alive", "content-length", "date", "server"}
FACTS = ("server", "version", "command", "date")


def recorded(engine: str) -> Path:
    return HERE / f"{engine}.yaml"


def proxy(target: str, key: str) -> ThreadingHTTPServer:
    import urllib3

    pool = urllib3.PoolManager(retries=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {"content-type": "application/json", "accept-encoding": "identity"}
            if key:
                headers["authorization"] = f"Bearer {key}"
            answer = pool.request(
                self.command, target + self.path, body=body or None, headers=headers, redirect=False
            )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in DROPPED:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.data)))
            self.end_headers()
            self.wfile.write(answer.data)

        do_GET = do_POST = forward

        def log_message(self, *args: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main() -> int:
    parser = argparse.ArgumentParser(description="make a cassette of a real server")
    parser.add_argument("engine")
    parser.add_argument("url")
    parser.add_argument("--model", default="scripted")
    for name in ("server", "version", "command"):
        parser.add_argument(f"--{name}", required=True)
    told = parser.parse_args()
    key = os.environ.get("ENGINEKIT_LIVE_KEY", "")
    import vcr

    path = recorded(told.engine)
    path.unlink(missing_ok=True)
    tape = vcr.VCR(
        record_mode="all",
        filter_headers=["authorization", "user-agent"],
        decode_compressed_response=True,
    )
    with tape.use_cassette(str(path)):
        server = proxy(told.url, key)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        code = (
            "import sys; from enginekit.kit.client import Client; "
            "from tests.cassettes.programme import run; "
            f"wrong = run(Client({{'engine': {told.engine!r}, 'base_url': {url!r}, "
            f"'model': {told.model!r}}})); "
            "print(wrong or 'as it must be'); sys.exit(bool(wrong))"
        )
        done = subprocess.run([sys.executable, "-c", code], timeout=300, check=False)
        server.shutdown()
        server.server_close()
    stored = yaml.safe_load(path.read_text("utf-8"))
    facts = {
        "server": told.server,
        "version": told.version,
        "command": told.command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for interaction in stored["interactions"]:
        headers = interaction["response"]["headers"]
        for name in [name for name in headers if name.lower() in ("date", "set-cookie")]:
            del headers[name]
        request = interaction["request"]
        request["uri"] = request["uri"].replace(told.url, "http://server")
    path.write_text(
        yaml.safe_dump({"recorded": facts, **stored}, sort_keys=False, allow_unicode=True), "utf-8"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

"""What the drivers cost: CPU per call and per streamed chunk, next to bare loops and to httpx.

    python benchmarks/drivers.py [--quick] [--check]

A fake server in a process of its own sends OpenAI chat events. Every variant reads the same bytes
and parses every event with `json.loads`; ours also frames, decodes and assembles chunks, keeps the
budgets and notices cut streams. Rounds are interleaved in one process; a figure is the CPU time
(user and system, all threads) of the client, the median over rounds; a ratio is the median of the
ratios inside each round, because absolute figures move with the machine's load.

Three ways of writing, each event an HTTP chunk of its own in all of them:

* `small`: a write for each event, one after the other; a read brings what has come meanwhile.
* `coalesced`: 50 events a write.
* `paced`: a write for each event with a pause after it, as a model generates, so that each read
  brings one event and the client sleeps in between. Here waking up costs more than everything that
  a client does: the line `socket + json` only receives and calls `json.loads`, without HTTP, deadline
  or decoding, and is the floor for any client that parses.

How many events a read brought is counted by the `socket` line and printed. `httpx` loops over
`iter_lines()`, as such loops are written; `httpx bytes` over `iter_bytes()` with the splitting of
the other bare loops. `enginekit` parses by the standard library, as the bare loops do; `+ orjson` is
what it does where orjson is installed.

`--check` fails when a ratio is worse than promised: at most 1.3 times the bare loop, and for `small`
and `coalesced` at least 2.5 times less than httpx. For `paced` that is beyond the floor.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# This folder holds files called as the packages langchain and llama_index.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._run import shape
from benchmarks._writes import EVENT, serve

from enginekit.drivers.async_ import AsyncDriver
from enginekit.drivers.sync import SyncDriver
from enginekit.engine import Budgets, Call, Encoded, Engine, Open, Target
from enginekit.engines._json import plain, quickest
from enginekit.engines._openai_decode import OpenAIDecoder
from enginekit.errors import EngineFault
from enginekit.facts.engine import EngineProfile

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello " * 50}], "stream": True}
LIMITS = {"per call": 1.3, "per chunk": 1.3}
HTTPX_AT_LEAST = 2.5
KINDS = {
    "small": "1 event a write",
    "coalesced": "50 events a write",
    "paced": "1 event a write, 0.3 ms apart",
}


# ------------------------------------------------------------------------------------ ours


reads: list[int] = []
"""Reads that each stream of the `socket` variant took."""


class Bench(Engine):
    """An engine of the OpenAI dialect whose path is what the benchmark asks for."""

    profile = EngineProfile(name="bench", title="Bench", wire="OpenAI", tested=("1",))
    quick = False

    def decoder(self) -> OpenAIDecoder:
        """By the standard library, unless `quick`."""
        made = OpenAIDecoder(self)
        made._quick = quickest() if self.quick else plain
        made._exact = made._quick is plain
        return made

    def encode(self, request: Any, *, stream: bool = True) -> Encoded:
        """A call to the path `request`."""
        call = self.call("POST", request, BODY, framing="sse")
        return Encoded(call=call, receipt=self.receipt(), decoder=self.decoder)

    def failure(self, status: int, headers: Any, body: bytes, *, path: str = "") -> EngineFault:
        """Never needed here."""
        return EngineFault(str(status))

    def probe(self) -> Any:
        """Never needed here."""
        raise NotImplementedError

    def ready(self, model: str) -> Any:
        """Never needed here."""
        raise NotImplementedError


class Quick(Bench):
    """With orjson, if it is there."""

    quick = True


def operation(effect: Any) -> Any:
    """An operation of one effect."""
    return (yield effect)


def opening(engine: Engine, path: str) -> Any:
    """Open a reply, as `enginekit.operations.open_encoded` does."""
    return (yield Open(engine=engine, encoded=engine.encode(path), budgets=Budgets()))


# ------------------------------------------------------------------------------------ variants


def events_of(buffer: bytes) -> tuple[int, bytes]:
    """Parse the whole events of a buffer; how many, and the rest: what a bare loop does."""
    *blocks, rest = buffer.split(b"\n\n")
    count = 0
    for block in blocks:
        data = block[6:]
        if data != b"[DONE]":
            json.loads(data)["choices"][0]["delta"].get("content")
            count += 1
    return count, rest


def read_line(line: str) -> int:
    """Parse one line of a stream; 1 when it was an event."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return 0
    json.loads(line[6:])["choices"][0]["delta"].get("content")
    return 1


def blocking_variants(url: str) -> dict[str, dict[str, Callable[..., int]]]:
    """Variants by name: `call(n)` and `stream(kind, n)` return how many events came."""
    import httpx
    import urllib3

    pool = urllib3.PoolManager()
    client = httpx.Client()
    driver = SyncDriver()
    engine = Bench(Target(base_url=url))
    headers = {"content-type": "application/json"}

    def body() -> bytes:
        return json.dumps(BODY).encode()

    def socket_stream(kind: str, n: int, *, parse: bool = False) -> int:
        count, rest = 0, b""
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            data = body()
            raw.sendall(
                b"POST /%b/%d HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
                % (kind.encode(), n, len(data), data)
            )
            tail, taken = b"", 0
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                data = raw.recv(65536)
                taken += 1
                tail = tail[-16:] + data
                if parse:
                    *blocks, rest = (rest + data).split(b"\n\n")
                    for block in blocks:
                        if (at := block.find(b"data: {")) >= 0:
                            json.loads(block[at + 6 :])
                            count += 1
        if not parse:
            reads.append(taken)
        return count if parse else n + 1

    def socket_json(kind: str, n: int) -> int:
        return socket_stream(kind, n, parse=True)

    def urllib3_call(n: int) -> int:
        for _ in range(n):
            answer = pool.request(
                "POST", f"{url}/call/1", body=body(), headers=headers, retries=False
            )
            json.loads(answer.data)
        return n

    def urllib3_stream(kind: str, n: int) -> int:
        answer = pool.request(
            "POST", f"{url}/{kind}/{n}", body=body(), headers=headers, preload_content=False
        )
        rest, count = b"", 0
        while data := answer.read1():
            came, rest = events_of(rest + data)
            count += came
        answer.release_conn()
        return count

    def httpx_call(n: int) -> int:
        for _ in range(n):
            json.loads(client.post(f"{url}/call/1", content=body(), headers=headers).content)
        return n

    def httpx_stream(kind: str, n: int) -> int:
        rest, count = b"", 0
        with client.stream("POST", f"{url}/{kind}/{n}", content=body(), headers=headers) as answer:
            for data in answer.iter_bytes():
                came, rest = events_of(rest + data)
                count += came
        return count

    def httpx_lines(kind: str, n: int) -> int:
        count = 0
        with client.stream("POST", f"{url}/{kind}/{n}", content=body(), headers=headers) as answer:
            for line in answer.iter_lines():
                count += read_line(line)
        return count

    def our_call(n: int) -> int:
        for _ in range(n):
            call = Call(target=engine.target, method="POST", path="/call/1", json=BODY)
            json.loads(driver.run(operation(call)).body)
        return n

    def our_stream(kind: str, n: int, engine: Bench = engine) -> int:
        count = 0
        for chunk in driver.run(opening(engine, f"/{kind}/{n}")):
            count += bool(chunk.text) or chunk.end is not None
        return count

    made: dict[str, dict[str, Callable[..., int]]] = {
        "urllib3": {"call": urllib3_call, "stream": urllib3_stream},
        "httpx": {"call": httpx_call, "stream": httpx_lines},
        "httpx bytes": {"stream": httpx_stream},
        "socket": {"stream": socket_stream},
        "socket + json": {"stream": socket_json},
        "enginekit": {"call": our_call, "stream": our_stream},
    }
    if quickest() is not plain:
        fast = Quick(Target(base_url=url))
        made["+ orjson"] = {"stream": lambda kind, n: our_stream(kind, n, fast)}
    return made


def async_variants(url: str) -> dict[str, dict[str, Callable[..., Any]]]:
    """As `blocking_variants`; made inside the running loop."""
    import aiohttp
    import httpx

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))
    driver = AsyncDriver()
    engine = Bench(Target(base_url=url))
    headers = {"content-type": "application/json"}

    def body() -> bytes:
        return json.dumps(BODY).encode()

    async def aiohttp_one() -> None:
        async with session.post(f"{url}/call/1", data=body(), headers=headers) as answer:
            json.loads(await answer.read())

    async def aiohttp_stream(kind: str, n: int) -> int:
        rest, count = b"", 0
        async with session.post(f"{url}/{kind}/{n}", data=body(), headers=headers) as answer:
            while data := await answer.content.readany():
                came, rest = events_of(rest + data)
                count += came
        return count

    async def httpx_one() -> None:
        answer = await client.post(f"{url}/call/1", content=body(), headers=headers)
        json.loads(answer.content)

    async def httpx_stream(kind: str, n: int) -> int:
        rest, count = b"", 0
        target = f"{url}/{kind}/{n}"
        async with client.stream("POST", target, content=body(), headers=headers) as answer:
            async for data in answer.aiter_bytes():
                came, rest = events_of(rest + data)
                count += came
        return count

    async def httpx_lines(kind: str, n: int) -> int:
        count = 0
        target = f"{url}/{kind}/{n}"
        async with client.stream("POST", target, content=body(), headers=headers) as answer:
            async for line in answer.aiter_lines():
                count += read_line(line)
        return count

    async def our_one() -> None:
        call = Call(target=engine.target, method="POST", path="/call/1", json=BODY, timeout=60)
        json.loads((await driver.run(operation(call))).body)

    async def our_stream(kind: str, n: int, engine: Bench = engine) -> int:
        count = 0
        async for chunk in await driver.run(opening(engine, f"/{kind}/{n}")):
            count += bool(chunk.text) or chunk.end is not None
        return count

    def calls(one: Callable[[], Any]) -> Callable[[int], Any]:
        async def several(n: int) -> int:
            for _ in range(n):
                await one()
            return n

        return several

    def concurrent(one: Callable[[], Any]) -> Callable[[int], Any]:
        async def together(n: int) -> int:
            await asyncio.gather(*(one() for _ in range(n)))
            return n

        return together

    async def finish() -> int:
        await session.close()
        await client.aclose()
        await driver.close()
        return 0

    made: dict[str, dict[str, Callable[..., Any]]] = {}
    for name, one, stream in (
        ("aiohttp", aiohttp_one, aiohttp_stream),
        ("httpx", httpx_one, httpx_lines),
        ("enginekit", our_one, our_stream),
    ):
        made[name] = {"call": calls(one), "stream": stream, "many": concurrent(one)}
    made["httpx bytes"] = {"stream": httpx_stream}
    if quickest() is not plain:
        fast = Quick(Target(base_url=url))
        made["+ orjson"] = {"stream": lambda kind, n: our_stream(kind, n, fast)}
    made["aiohttp"]["finish"] = finish
    return made


# ------------------------------------------------------------------------------------ measuring


def measured(
    rounds: int, jobs: dict[str, Callable[[], int]], expected: int
) -> dict[str, list[float]]:
    """CPU seconds by variant and round; the order turns from round to round."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            start = time.process_time()
            count = jobs[name]()
            used = time.process_time() - start
            if count != expected:
                raise SystemExit(f"{name} saw {count} events instead of {expected}")
            if number:  # the first round warms up
                spent[name].append(used)
    return spent


def report(title: str, spent: dict[str, list[float]], per: int, bare: str) -> tuple[float, float]:
    """Print one line a variant; returns our ratio to the bare loop and httpx's to ours."""
    print(f"\n{title}")
    for name, times in spent.items():
        ratio = statistics.median(a / b for a, b in zip(times, spent[bare], strict=True))
        httpx = statistics.median(a / b for a, b in zip(spent["httpx"], times, strict=True))
        print(
            f"  {name:<14} {statistics.median(times) / per * 1e6:8.2f} µs   {ratio:5.2f} × {bare}"
            f"   {httpx:5.2f} × cheaper than httpx"
        )
    ours = statistics.median(a / b for a, b in zip(spent["enginekit"], spent[bare], strict=True))
    httpx = statistics.median(
        a / b for a, b in zip(spent["httpx"], spent["enginekit"], strict=True)
    )
    return ours, httpx


def main() -> int:
    """Measure, print and, with `--check`, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for CI")
    parser.add_argument("--check", action="store_true", help="fail when a promise is broken")
    parser.add_argument(
        "--slack", type=float, default=0.0, help="share by which --check forgives (busy machines)"
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run before other programs (needs root): for a busy machine",
    )
    options = parser.parse_args()
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    rounds, calls, chunks, many = (7, 100, 1000, 300) if options.quick else (11, 300, 3000, 1000)
    ours_pipe, its_pipe = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(its_pipe,), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{ours_pipe.recv()}"
    size = len(b"data: " + json.dumps(EVENT).encode() + b"\n\n")
    print(shape("enginekit", "urllib3", "aiohttp", "httpx", "orjson"))
    print(f"event: {size} bytes, one HTTP chunk each; {chunks} a stream; rounds: {rounds}")
    broken: list[str] = []

    def judge(what: str, kind: str, ours: float, httpx: float) -> None:
        if ours > LIMITS[kind] * (1 + options.slack):
            broken.append(f"{what}: {ours:.2f} × the bare loop, promised {LIMITS[kind]}")
        if ("coalesced" in what or "small" in what) and httpx < HTTPX_AT_LEAST * (
            1 - options.slack
        ):
            broken.append(f"{what}: httpx costs {httpx:.2f} × ours, promised {HTTPX_AT_LEAST}")

    try:
        variants = blocking_variants(url)
        spent = measured(
            rounds,
            {n: (lambda v=v: v["call"](calls)) for n, v in variants.items() if "call" in v},
            calls,
        )
        judge("blocking call", "per call", *report("blocking, per call", spent, calls, "urllib3"))
        for kind in KINDS:
            jobs = {n: (lambda v=v, k=kind: v["stream"](k, chunks)) for n, v in variants.items()}
            reads.clear()
            spent = measured(rounds, jobs, chunks + 1)
            a_read = chunks / statistics.median(reads)
            title = f"blocking, per chunk, {kind} writes: {KINDS[kind]}; {a_read:.1f} events a read"
            judge(f"blocking {kind}", "per chunk", *report(title, spent, chunks, "urllib3"))

        with asyncio.Runner() as runner:

            async def make() -> dict[str, dict[str, Callable[..., Any]]]:
                return async_variants(url)

            made = runner.run(make())

            def job(name: str, which: str, *args: Any) -> Callable[[], int]:
                return lambda: runner.run(made[name][which](*args))

            spent = measured(
                rounds, {n: job(n, "call", calls) for n in made if "call" in made[n]}, calls
            )
            judge("async call", "per call", *report("async, per call", spent, calls, "aiohttp"))
            spent = measured(
                max(3, rounds // 2),
                {n: job(n, "many", many) for n in made if "many" in made[n]},
                many,
            )
            title = f"async, per call, {many} at once"
            judge("async concurrent", "per call", *report(title, spent, many, "aiohttp"))
            for kind in KINDS:
                jobs = {n: job(n, "stream", kind, chunks) for n in made}
                spent = measured(rounds, jobs, chunks + 1)
                title = f"async, per chunk, {kind} writes: {KINDS[kind]}"
                judge(f"async {kind}", "per chunk", *report(title, spent, chunks, "aiohttp"))
            runner.run(made["aiohttp"]["finish"]())
    finally:
        server.terminate()
        server.join()
    for line in broken:
        print(f"BROKEN PROMISE  {line}")
    return 1 if broken and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())

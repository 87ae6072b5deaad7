"""What the framework benchmarks share: the yardstick's httpx half, jobs, interleaving, the table."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from benchmarks._fake import MODEL, fake_server, text_of

PROMPT = "Tell me about rivers, please."
OURS = "enginekit"

Job = Callable[[], None]
Build = Callable[[int], Any]
"""Makes a model that answers with so many tokens."""

LOOP = asyncio.new_event_loop()
"""One loop for all: ChatOpenAI and ChatOllama fail in the second `asyncio.run` of a process."""


def check(text: str, tokens: int) -> None:
    """Every reply is compared with what was sent."""
    if text != text_of(tokens):
        raise SystemExit(f"a reply is not what was sent: {text[:80]!r}…")


# ---------------------------------------------------------------------------------- yardstick


class Http:
    """The network's share of A: a hand-written httpx loop."""

    def __init__(self, url: str, tokens: int) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
        }
        self.client = httpx.Client(timeout=60, trust_env=False)

    def whole(self) -> str:
        answer = json.loads(self.client.post(self.url, json=self.body).content)
        return str(answer["choices"][0]["message"]["content"])

    def stream(self) -> str:
        body = {**self.body, "stream": True, "stream_options": {"include_usage": True}}
        with self.client.stream("POST", self.url, json=body) as answer:
            return "".join([text_in(line) for line in answer.iter_lines()])

    async def awhole(self, client: httpx.AsyncClient) -> str:
        answer = json.loads((await client.post(self.url, json=self.body)).content)
        return str(answer["choices"][0]["message"]["content"])

    async def astream(self, client: httpx.AsyncClient) -> str:
        body = {**self.body, "stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", self.url, json=body) as answer:
            return "".join([text_in(line) async for line in answer.aiter_lines()])


def text_in(line: str) -> str:
    """The text of one line of a stream, as a hand-written loop reads it."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return ""
    choices = json.loads(line[6:])["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


# ---------------------------------------------------------------------------------- jobs


def repeated(one: Callable[[], str], tokens: int, times: int) -> Job:
    def job() -> None:
        for _ in range(times):
            check(one(), tokens)

    return job


def in_loop(one: Callable[[], Awaitable[str]], tokens: int, at_once: int, times: int = 1) -> Job:
    async def run() -> None:
        for _ in range(times):
            for text in await asyncio.gather(*(one() for _ in range(at_once))):
                check(text, tokens)

    return lambda: LOOP.run_until_complete(run())


AT_A_CLIENT = 100
"""Calls that share one httpx client: its pool looks at every connection at every request, so a few
small pools are the cheapest way to use it, and A is to be the cheapest honest loop."""


def http_in_loop(http: Http, kind: str, tokens: int, at_once: int, times: int = 1) -> Job:
    one = http.awhole if kind == "whole" else http.astream
    clients = [
        httpx.AsyncClient(timeout=60, trust_env=False) for _ in range(-(-at_once // AT_A_CLIENT))
    ]

    async def run() -> None:
        for _ in range(times):
            calls = (one(clients[number // AT_A_CLIENT]) for number in range(at_once))
            for text in await asyncio.gather(*calls):
                check(text, tokens)

    return lambda: LOOP.run_until_complete(run())


def http_batch(http: Http, tokens: int, count: int) -> Job:
    def job() -> None:
        with ThreadPoolExecutor(32) as pool:
            for text in pool.map(lambda _: http.whole(), range(count)):
                check(text, tokens)

    return job


# ---------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        limit: the largest ratio to A that the project holds itself to.
        units: calls or chunks in one job; divides the absolute figure.
        yardstick: the two halves of A.
        job: the same work through a model.
        tokens: of each reply.
    """

    name: str
    limit: float
    units: int
    yardstick: Sequence[Job]
    job: Callable[[Any], Job]
    tokens: int


def cpu(job: Job) -> float:
    gc.collect()
    before = time.process_time()
    job()
    return time.process_time() - before


def measured(scenario: Scenario, builds: Mapping[str, Build], rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds: the ratio to A of the same round, and µs per unit."""
    variants: dict[str, Sequence[Job]] = {"A": scenario.yardstick}
    failed: dict[str, str] = {}
    for name, build in builds.items():
        job = scenario.job(build(scenario.tokens))
        try:
            job()
        except Exception as error:  # a peer that cannot do this at all is a result, too
            if name == OURS:
                raise
            failed[name] = type(error).__name__
            print(f"{name}: {error!r:.300}", file=sys.stderr)
        else:
            variants[name] = [job]
    for job in scenario.yardstick:
        job()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(sum(cpu(job) for job in variants[name]))
    row: dict[str, Any] = {"name": scenario.name, "limit": scenario.limit, "failed": failed}
    for name, times in taken.items():
        row[name] = statistics.median(a / b for a, b in zip(times, taken["A"], strict=True))
        row[f"{name} µs"] = statistics.median(times) / scenario.units * 1e6
    return row


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The rows as Markdown: ratios to A, and A itself in µs."""
    lines = [
        "| ratio to A (paired medians) | limit | " + " | ".join(names) + " | A |",
        "|---|---:|" + "---:|" * (len(names) + 1),
    ]
    for row in rows:
        cells = [
            f"{row[name]:.2f}" if name in row else row["failed"].get(name, "–") for name in names
        ]
        lines.append(
            f"| {row['name']} | {row['limit']:.2f} | {' | '.join(cells)} | {row['A µs']:.0f} µs |"
        )
    return "\n".join(lines)


def construction(build: Callable[[], Any]) -> None:
    """First and later construction, in milliseconds of CPU time."""
    begin = time.process_time()
    build()
    first = time.process_time() - begin
    begin = time.process_time()
    for _ in range(1000):
        build()
    later = (time.process_time() - begin) / 1000
    print(f"construction: first {first * 1e3:.1f} ms, later {later * 1e3:.3f} ms (limit 0.2)")


def wall(name: str, job: Job) -> float:
    """Seconds on the clock of the first and of the fastest later run; returns the latter."""
    walls, spent = [], []
    for _ in range(4):
        gc.collect()
        begin, before = time.perf_counter(), time.process_time()
        job()
        walls.append(time.perf_counter() - begin)
        spent.append(time.process_time() - before)
    best = min(walls[1:])
    firsts.append(walls[0])
    print(
        f"  {name:<44} first {walls[0]:5.2f} s ({spent[0]:.2f} s of it CPU), "
        f"later {best:5.2f} s ({spent[walls.index(best)]:.2f} s)",
        flush=True,
    )
    return best


WALL_LIMIT = 0.6
WALLS = "500 calls at 100 ms"
firsts: list[float] = []
"""Seconds of the first run of each job that `wall` has measured."""


def alone(given: argparse.Namespace) -> int:
    """The same calls in a new process that has loaded no peer, nor made a call before."""
    command = [sys.executable, sys.argv[0], "--only", WALLS, "--slack", str(given.slack)]
    for flag in ("check", "realtime"):
        command += [f"--{flag}"] if getattr(given, flag) else []
    return subprocess.run(command, check=False).returncode


def shape(*packages: str) -> str:
    """The machine and the versions, one line."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d')} · {os.cpu_count()} cores ({platform.machine()}), load "
        f"{load:.1f} · Python {platform.python_version()} · {', '.join(versions)}"
    )


def run(
    title: str,
    packages: Sequence[str],
    build: Callable[[str], Build],
    peers: Callable[[str], dict[str, Build]],
    scenarios: Callable[[str], Sequence[Scenario]],
    walls: Callable[[Mapping[str, Build], int], float],
) -> int:
    """Parse the arguments, measure, print; returns 1 when a limit is broken and that was asked."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--peers", action="store_true", help="measure the well-known classes, too")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--check", action="store_true", help="fail when a limit is broken")
    parser.add_argument("--slack", type=float, default=0.0, help="share by which --check forgives")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run before other programs (needs root): for clock times on a busy machine",
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    for name in [name for name in os.environ if name.startswith("ENGINEKIT_")]:
        del os.environ[name]
    print(f"{title}\n{shape('enginekit', 'urllib3', 'aiohttp', 'httpx', 'orjson', *packages)}\n")
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    names = [OURS]
    with fake_server() as url:
        construction(lambda: build(url)(16))
        builds: dict[str, Build] = {OURS: build(url)}
        if given.peers:
            builds.update(peers(url))
        names = list(builds)
        for scenario in scenarios(url):
            if given.only not in scenario.name:
                continue
            row = measured(scenario, builds, 3 if given.quick else given.rounds)
            rows.append(row)
            shown = "  ".join(
                f"{n} {row[n]:.2f} ({row[f'{n} µs']:.0f} µs)" for n in names if n in row
            )
            print(f"{scenario.name:30} A {row['A µs']:.0f} µs  {shown}", flush=True)
            if row[OURS] > scenario.limit * (1 + given.slack):
                broken.append(f"{scenario.name}: {row[OURS]:.2f}, promised {scenario.limit}")
    if rows:
        print("\n" + table(rows, names))
    failed_alone = 0
    if given.only in WALLS and (given.peers or not given.only):
        sys.stdout.flush()
        failed_alone = alone(given)
    if given.only in WALLS and (given.peers or given.only):
        print(f"\n500 calls against a server that takes 100 ms (limit {WALL_LIMIT} s on the clock)")
        with fake_server(delay=0.1) as url:
            builds = {OURS: build(url), **(peers(url) if given.peers else {})}
            best = walls(builds, 500)
        # With the peers' modules loaded the collector takes longer: that is no promise of ours.
        worst = best if given.peers else max(best, firsts[0])
        if worst > WALL_LIMIT * (1 + given.slack):
            broken.append(f"{WALLS}: {worst:.2f} s")
    LOOP.run_until_complete(LOOP.shutdown_asyncgens())
    LOOP.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))
    for line in broken:
        print(f"OVER THE LIMIT  {line}")
    sys.stdout.flush()
    return int(given.check and bool(broken or failed_alone))

"""What a plan costs: every model of the catalog on 30 machines, under each engine's rules.

    python benchmarks/sizing.py [--quick] [--check]

Facts are loaded first; each pair of model and machine is planned several times and its best time
counts, because a busy machine only ever adds; the 20 costliest are then timed 50 times more. `yardstick` is 1,000 turns of a bare loop with a
dictionary, timed in between, so that the ratio stays the same on a faster or slower machine.
`--check` fails when the median plan costs more than 6 yardsticks, or the costliest more than 13:
with a yardstick of 0.06 ms, as on a busy machine of 2020, 0.36 and 0.8 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

from enginekit.catalog import catalog_names, describe
from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.hardware import preset, preset_names
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import POLICIES, Policy

MEDIAN, COSTLIEST = 6.0, 13.0
MACHINES = 30
Pair = tuple[str, str]


def yardstick() -> int:
    """Nanoseconds of the bare loop."""
    before, table = time.perf_counter_ns(), {}
    for number in range(1000):
        table[number & 63] = number * 3 // 2
    return time.perf_counter_ns() - before


def measure(
    policy: Policy, pairs: Mapping[Pair, tuple[ModelSpec, Machine]], rounds: int
) -> tuple[dict[Pair, int], int]:
    """Nanoseconds of each pair's best plan, and of the yardstick at its best."""
    best: dict[Pair, int] = {}
    bare = yardstick()

    def time_once(pair: Pair) -> None:
        model, machine = pairs[pair]
        before = time.perf_counter_ns()
        plan(model, machine, policy=policy)
        took = time.perf_counter_ns() - before
        best[pair] = min(took, best.get(pair, took))

    for _ in range(rounds):
        for number, pair in enumerate(pairs):
            if number % 100 == 0:
                bare = min(bare, yardstick())
            time_once(pair)
    for pair in sorted(best, key=lambda pair: -best[pair])[:20]:
        for _ in range(50):
            time_once(pair)
    return best, bare


def main() -> int:
    """Measure, print, and with `--check` judge."""
    parser = argparse.ArgumentParser(description="what a plan costs")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and models")
    parser.add_argument("--check", action="store_true", help="fail above the promised ratios")
    given, _ = parser.parse_known_args()
    names = preset_names()
    machines = [preset(name) for name in names[:: max(1, len(names) // MACHINES)]][:MACHINES]
    models = [describe(name) for name in catalog_names()][:: 6 if given.quick else 1]
    pairs = {(one.name, other.name): (one, other) for other in machines for one in models}
    rounds = 3 if given.quick else 7
    print(f"{len(models)} models on {len(machines)} machines, the best of {rounds} rounds")
    print(
        f"{'rules':16} {'all':>8} {'median':>9} {'costliest':>10}   in yardsticks   costliest pair"
    )
    worst = 0
    for policy in POLICIES.values():
        best, bare = measure(policy, pairs, rounds)
        median = statistics.median(best.values())
        pair, most = max(best.items(), key=lambda item: item[1])
        ratios = median / bare, most / bare
        print(
            f"{policy.name:16} {sum(best.values()) / 1e9:6.2f} s {median / 1e6:6.2f} ms "
            f"{most / 1e6:7.2f} ms   {ratios[0]:5.1f} {ratios[1]:7.1f}   {' on '.join(pair)}"
        )
        if ratios[0] > MEDIAN or ratios[1] > COSTLIEST:
            worst = 1
            print(f"  promised: {MEDIAN} for the median, {COSTLIEST} for the costliest")
    return worst if given.check else 0


if __name__ == "__main__":
    raise SystemExit(main())

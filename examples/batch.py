"""200 inputs in one go, eight at a time, with progress, and no failure that stops the rest.

    pip install 'enginekit[langchain,embedded]'
    python examples/batch.py
    ENGINEKIT_ENGINE=vllm ENGINEKIT_BASE_URL=http://gpu:8000 python examples/batch.py 200 64

The arguments are the number of inputs and how many are in flight at once. The questions are whether
numbers are prime, so the program can count how many answers are right.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from enginekit.langchain import EngineKitChat


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


async def main(count: int = 200, at_once: int = 8) -> None:
    """Ask, show progress, count."""
    model = EngineKitChat(temperature=0, max_tokens=24)
    questions = [f"Is {n} a prime number? Answer yes or no." for n in range(1, count + 1)]
    answers: dict[int, Any] = {}
    start = time.monotonic()
    async for index, answer in model.abatch_as_completed(
        questions, {"max_concurrency": at_once}, return_exceptions=True
    ):
        answers[index] = answer
        if len(answers) % 10 == 0 or len(answers) == count:
            rate = len(answers) / (time.monotonic() - start)
            print(f"\r{len(answers)}/{count}, {rate:.1f} per second", end="", flush=True)
    print()
    failed = [answer for answer in answers.values() if isinstance(answer, Exception)]
    tokens = sum(
        (answer.usage_metadata or {}).get("output_tokens", 0)
        for answer in answers.values()
        if not isinstance(answer, Exception)
    )
    right = sum(
        answer.text.strip().lower().startswith("yes" if is_prime(index + 1) else "no")
        for index, answer in answers.items()
        if not isinstance(answer, Exception)
    )
    print(f"answered {count - len(failed)}, failed {len(failed)}, tokens {tokens}")
    print(f"right {right} of {count}")
    if failed:
        print(f"the first failure: {failed[0]}")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:3])))

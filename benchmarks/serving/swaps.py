"""Champions changing under load, or none changing: no failed request, no mixed answer, and how long answers take.

    python benchmarks/serving/swaps.py [--swaps 1000] [--rate 200] [--home DIR]
    python benchmarks/serving/swaps.py --swaps 0 --seconds 600        the service level alone

Questions come at a fixed rate; each answer's forecasts must be those of the version it names. A while without a
change and a number of promotions, each as soon as the one before it serves, take turns, so that a machine that is slow
for a while is slow for both. The claims: 1,000 swaps without a
failed or mixed answer and with a 99th percentile of at most 1.5 times the steady one; at 200 requests/s 50 % under
50 ms, 95 % under 150 ms, 99 % under 300 ms without an error; a promotion is served within 5 s.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from city import City, Registry, make_city
from load import Paced, percentile, service

from bike_assets.core.bundle import load_bundle, load_public_key

SWAPS_A_TURN = 50
SERVICE_LEVEL = {0.5: 50, 0.95: 150, 0.99: 300}


def expected(city: City, counter_ids: list[str], hour: int) -> dict[str, list[float]]:
    """The forecasts of each version for a question, computed here from its bundle."""
    key = load_public_key(city.home / "keys" / "bundle.pub")
    points = {}
    for number, bundle_id in enumerate(city.bundle_ids, 1):
        frame = load_bundle(city.home / "bundles" / bundle_id, key).forecast(counter_ids)
        # Of the first day, whose hours come first.
        points[str(number)] = [
            frame.filter(counter_id=counter_id)["forecast"][hour] for counter_id in counter_ids
        ]
    return points


def main() -> None:
    """Measure, print, exit with 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, help="without a change, every turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--home", type=Path, help="keeps the city for the next run")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        city = make_city(arguments.home or Path(stack.enter_context(tempfile.TemporaryDirectory())))
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        registry = Registry(city)
        stack.callback(registry.close)
        running = stack.enter_context(
            service(city, registry.url, state, poll_seconds="0.1", workers=str(arguments.workers))
        )
        counter_ids = city.counter_ids[:5]
        right = expected(city, counter_ids, 8)

        seen = {"version": "1"}

        def check(content: bytes) -> str | None:
            answer = json.loads(content)
            version = seen["version"] = answer["model"]["version"]
            points = [forecast["forecast"] for forecast in answer["forecasts"]]
            return None if points == right[version] else f"version {version} answers {points}"

        question = {"counter_ids": counter_ids, "target_hours": [city.hours[8]]}
        paced = Paced(running, question, check)
        paced.run(arguments.rate, lambda seconds: seconds > 2)
        steady, changing, waits = list[float](), list[float](), list[float]()
        for first in range(0, max(arguments.swaps, 1), SWAPS_A_TURN):
            steady += paced.run(arguments.rate, lambda seconds: seconds > arguments.seconds)
            turn = range(first, min(first + SWAPS_A_TURN, arguments.swaps))
            if turn:
                changing += swapping(paced, seen, registry, turn, arguments.rate, waits)
        steady.sort()
        changing.sort()
        show("steady", steady)
        broken = [
            f"{share:.0%} within {limit} ms"
            for share, limit in SERVICE_LEVEL.items()
            if percentile(steady, share) > limit
        ]
        if waits:
            show(f"{len(waits)} swaps", changing)
            ratio = percentile(changing, 0.99) / percentile(steady, 0.99)
            print(
                f"99th percentile {ratio:.2f} times the steady one; "
                f"slowest promotion served after {max(waits):.2f} s"
            )
            broken += ["99th percentile at most 1.5 times the steady one"] * (ratio > 1.5)
            broken += ["a promotion is served within 5 s"] * (max(waits) > 5)
        print(f"failed or mixed: {len(paced.faults)} {paced.faults[:3]}")
        print(f"memory: {running.memory / 1e6:.0f} MB")
    if broken or paced.faults:
        sys.exit(f"does not hold: {', '.join(broken) or 'no failed and no mixed answer'}")


def swapping(
    paced: Paced,
    seen: Mapping[str, str],
    registry: Registry,
    swaps: range,
    rate: float,
    waits: list[float],
) -> list[float]:
    """Answer times while one promotion follows the other; `waits` gets the time from each to an answer of it.

    `seen` holds the version that answered last: who looks for it asks nothing, and so disturbs nobody.
    """
    done = threading.Event()

    def promote() -> None:
        for number in swaps:
            # Three in turn: the one before the one that serves is still in memory, and no other is.
            version = (number + 1) % 3 + 1
            registry.promote(version)
            began = time.perf_counter()
            while seen["version"] != str(version):
                time.sleep(0.005)
            waits.append(time.perf_counter() - began)
        done.set()

    thread = threading.Thread(target=promote)
    thread.start()
    took = paced.run(rate, lambda _seconds: done.is_set())
    thread.join()
    return took


def show(name: str, took: list[float]) -> None:
    """Print the percentiles of sorted times."""
    shown = "  ".join(f"p{share * 100:g} {percentile(took, share):.2f} ms" for share in (0.5, 0.95, 0.99, 1))
    print(f"{name:12} {len(took):7,} answers  {shown}", flush=True)


if __name__ == "__main__":
    main()

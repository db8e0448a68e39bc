"""How good the forecasts are, how long a backtest takes and how much memory, by family: `bike-assets backtest`.

    python benchmarks/forecast_accuracy.py                                      the simulated city, its last four weeks
    python benchmarks/forecast_accuracy.py --data FILE... --train-until 2023-12-31 --to 2024-02-25
    python benchmarks/forecast_accuracy.py --data FILE... --from 2023-03-01 --to 2024-02-25 --retrain monthly

Real exports are ingested into a temporary home first, or once into the one that --home names. Every other option of
`bike-assets backtest` may follow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date, timedelta

MEASURES = (
    ("r2", ".4f"),
    ("rmse", ".2f"),
    ("mae", ".2f"),
    ("wape", ".4f"),
    ("geh5_share", ".4f"),
    ("skill_mean4", ".4f"),
    ("skill_seasonal_naive", ".4f"),
    ("coverage_80", ".3f"),
    ("coverage_90", ".3f"),
)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--train-until", type=date.fromisoformat)
    parser.add_argument("--from", dest="first", type=date.fromisoformat)
    parser.add_argument("--home")
    args, more = parser.parse_known_args()
    if args.train_until:
        first = args.first or args.train_until + timedelta(days=1)
        more += ["--train-until", str(args.train_until), "--from", str(first)]
    elif args.first:
        more += ["--from", str(args.first)]
    if args.data:
        more += ["--source", "archive", *(part for path in args.data for part in ("--data", path))]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "bike_assets.cli", "backtest", "--home", args.home or temporary]
        done = subprocess.run([*command, "--no-mlflow", "--json", *more], stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    for family, found in result["families"].items():
        for rows in ("horizon", "horizon_trusted"):
            kind = "every counted hour" if rows == "horizon" else "without outages, spikes and stuck counts"
            print(f"\n{family}, {kind}")
            print(f"{'day':>5} {'n':>9}", *(f"{name[:11]:>11}" for name, _ in MEASURES))
            for day, row in found[rows].items():
                cells = ("–" if row[name] is None else format(row[name], form) for name, form in MEASURES)
                print(f"{day:>5} {row['n']:>9,}", *(f"{cell:>11}" for cell in cells))
        judged = found["verdict"]
        print(
            f"seasonal naive better in months {judged['months_lost']}, at horizons {judged['horizons_lost']}; "
            f"beaten at {judged['counters_won']:.1%} of counters; coverage within 5 points at "
            f"{judged['counters_covered_80']:.1%} (80 %) and {judged['counters_covered_90']:.1%} (90 %) of counters"
        )
    print(
        f"\n{len(result['origins'])} trainings, {result['origins_reused']} kept from before: "
        f"{result['seconds']} s, peak {result['peak_memory_mb']} MB"
    )


if __name__ == "__main__":
    main()

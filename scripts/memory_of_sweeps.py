#!/usr/bin/env python3
"""Peak memory of a sweep over few samples and over many, and the share of time that goes into the store: the embedded demo's models
on scenes of its own.

    python3 scripts/memory_of_sweeps.py BDHS OUT.json [--samples 100 --samples 10000] [--work DIR]

BDHS is the command (target/release/bdhs). Standard library only, Linux. Exit status 1 if the largest run takes more than 1.2 times the
memory of the smallest, or 3 % or more of its time for the store.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

MEMORY, STORE = 1.2, 0.03
# The default sweep's.
SETTINGS = ["--rho", "0.9", "--max-sentence-tokens", "32", "--max-response-tokens", "128"]
for encoder in ("demo-mpnet", "demo-bert", "demo-roberta", "demo-xlm-roberta"):
    SETTINGS += ["--encoder", encoder]


def run(bdhs, work, samples):
    """One sweep; its peak memory in MB, seconds of each stage and of the whole."""
    scenes, out = work / f"scenes-{samples}", work / f"run-{samples}"
    subprocess.run([bdhs, "demo", "scenes", "--quiet", "--out", scenes, "--count", str(samples)], check=True)
    data = next(scenes.glob("*.json"))
    command = [bdhs, "sweep", "--quiet", "--model", "demo-llava", "--data", data, "--out", out, *SETTINGS]
    begun = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - begun
    if status != 0:
        sys.exit(f"{command} ended with status {status}")
    summary = json.loads((out / "summary.json").read_text())
    stages = summary["seconds"]
    return {
        "samples": samples,
        "candidates": summary["candidates_generated"],
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(wall, 1),
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
        "store_share": round(stages["store"] / wall, 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bdhs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--samples", type=int, action="append")
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    counts = sorted(arguments.samples or [100, 10000])
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or pathlib.Path(folder)
        runs = [run(arguments.bdhs.resolve(), work, samples) for samples in counts]
    growth = runs[-1]["peak_mb"] / runs[0]["peak_mb"]
    document = {"runs": runs, "growth": round(growth, 3)}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    sys.exit(growth > MEMORY or runs[-1]["store_share"] >= STORE)


if __name__ == "__main__":
    main()

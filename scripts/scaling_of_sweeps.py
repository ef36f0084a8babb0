#!/usr/bin/env python3
"""How a sweep's time, memory and store grow with what it is asked for: the embedded demo's models on scenes of its own, the worst case
for the store's share, along one axis at a time.

    python3 scripts/scaling_of_sweeps.py BDHS OUT.json [--work DIR] [--model-axis DIR ... --photos examples/photos/photos.json]

BDHS is the command (target/release/bdhs). --model-axis: LLaVA folders with other numbers of image tokens, each run on a few photos.
Writes OUT.json and prints it as a Markdown table. Standard library only, Linux. Ten minutes on two cores. Exit status 1 if the
largest run takes more than 1.2 times the memory of the smallest, or 3 % or more of its time for the store.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

MEMORY, STORE = 1.2, 0.03
# The default sweep's, but for the samples: all other axes start from here.
DEFAULT = {"samples": 300, "encoders": 4, "rho": 0.9, "attempts": 5, "sentences": "all", "token budget": 16384}
AXES = {
    "samples": [100, 1000, 10000],
    "encoders": [1, 2, 4],
    "rho": [0, 0.5, 0.9, 1],
    "attempts": [1, 5, 10],
    "sentences": [1, 2, 4],
    "token budget": [4096, 16384, 65536],
}
ENCODERS = ["demo-mpnet", "demo-bert", "demo-roberta", "demo-xlm-roberta"]
LIMITS = ["--max-sentence-tokens", "32", "--max-response-tokens", "128"]
# Runs of a point, of which the median is taken; large ones are done once.
ROUNDS, ONCE = 3, 5000
PHOTOS = 4


def scenes(bdhs, work, count):
    """A data file of so many drawn scenes."""
    folder = work / f"scenes-{count}"
    if not folder.exists():
        subprocess.run([bdhs, "demo", "scenes", "--quiet", "--out", folder, "--count", str(count)], check=True, stdout=subprocess.DEVNULL)
    return folder / "data.json"


def cut(bdhs, work, samples, sentences):
    """A data file of scenes that have at least as many sentences as the longest of the axis, cut to the first `sentences`."""
    source = scenes(bdhs, work, 20 * samples)
    rows = []
    for row in json.loads(source.read_text()):
        answer = row["conversations"][1]
        parts = re.split(r"(?<=[.!?]) ", answer["value"])
        if len(parts) >= max(AXES["sentences"]):
            answer["value"] = " ".join(parts[:sentences])
            rows.append(row)
    if len(rows) < samples:
        sys.exit(f"only {len(rows)} of {20 * samples} scenes have {max(AXES['sentences'])} sentences, {samples} are needed")
    path = source.with_name(f"sentences-{sentences}.json")
    path.write_text(json.dumps(rows[:samples]))
    return path


def run(command, out):
    """One sweep into a new folder; its seconds of each stage and of the whole, peak memory in MB, candidates."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    child = subprocess.Popen([str(part) for part in command + ["--out", out]], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - begun
    if status != 0:
        sys.exit(f"{command} ended with status {status}")
    summary = json.loads((out / "summary.json").read_text())
    return {"wall": wall, "peak": usage.ru_maxrss / 1024, "summary": summary}


def point(command, out, samples):
    """The median of some runs."""
    runs = [run(command, out) for _ in range(1 if samples >= ONCE else ROUNDS)]
    median = lambda value: statistics.median(value(one) for one in runs)
    summary = runs[0]["summary"]
    wall = median(lambda one: one["wall"])
    stages = {
        name: round(median(lambda one: one["summary"]["seconds"].get(name, 0.0)), 3) for name in summary["seconds"]
    }
    return {
        "samples": samples,
        "candidates": summary["candidates_generated"],
        "seconds": round(wall, 2),
        "ms_per_sample": round(1000 * wall / samples, 2),
        "peak_mb": round(max(one["peak"] for one in runs), 1),
        "store_share": round(median(lambda one: one["summary"]["seconds"]["store"] / one["wall"]), 4),
        "stages": stages,
        "runs": len(runs),
    }


def demo(bdhs, work, axis, value):
    """A point of an axis of the demo."""
    at = {**DEFAULT, axis: value}
    cutting = axis == "sentences"
    data = cut(bdhs, work, at["samples"], value) if cutting else scenes(bdhs, work, at["samples"])
    command = [bdhs, "sweep", "--quiet", "--model", "demo-llava", "--data", data, *LIMITS]
    command += ["--rho", at["rho"], "--attempts", at["attempts"], "--token-budget", at["token budget"]]
    for encoder in ENCODERS[: at["encoders"]]:
        command += ["--encoder", encoder]
    return {"value": value, **point(command, work / "run", at["samples"])}


def model(bdhs, work, folder, photos):
    """A point of the axis of models."""
    command = [bdhs, "sweep", "--quiet", "--model", folder, "--data", photos, "--limit", PHOTOS, "--rho", "0.99"]
    command += ["--max-sentence-tokens", "64", "--encoder", ENCODERS[0]]
    found = point(command, work / "run", PHOTOS)
    store = sqlite3.connect(work / "run" / "store.db")
    (tokens,) = store.execute("SELECT max(image_tokens) FROM candidates").fetchone()
    store.close()
    return {"value": tokens, "model": folder.name, **found}


def table(document):
    """The document in Markdown."""
    lines = ["| axis | value | samples | candidates | time | a sample | peak memory | store |", "|---|---|---|---|---|---|---|---|"]
    for axis, points in document["axes"].items():
        for one in points:
            cells = [axis, f"{one['value']:,}", f"{one['samples']:,}", f"{one['candidates']:,}", f"{one['seconds']:.1f} s"]
            cells += [f"{one['ms_per_sample']:.1f} ms", f"{one['peak_mb']:.0f} MB", f"{100 * one['store_share']:.1f} %"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bdhs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--axis", choices=AXES, action="append", help="only this one; repeat for several")
    parser.add_argument("--model-axis", type=pathlib.Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--photos", type=pathlib.Path, default=pathlib.Path("examples/photos/photos.json"))
    arguments = parser.parse_args()
    bdhs = arguments.bdhs.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or pathlib.Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        axes = {
            axis: [demo(bdhs, work, axis, value) for value in values]
            for axis, values in AXES.items()
            if axis in (arguments.axis or AXES)
        }
        if arguments.model_axis:
            axes["image tokens"] = [model(bdhs, work, folder, arguments.photos) for folder in arguments.model_axis]
    document = {"default": DEFAULT, "cores": len(os.sched_getaffinity(0)), "axes": axes}
    met = True
    if "samples" in axes:
        first, *_, last = axes["samples"]
        document["growth"] = round(last["peak_mb"] / first["peak_mb"], 3)
        met = document["growth"] <= MEMORY and last["store_share"] < STORE
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    sys.exit(not met)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The kernels on a GPU beside torch's, in one run: short turns of ours and of every peer, rounds of them, and the ceilings.

    gpu.py --bench pool=PROGRAM --bench cosine=PROGRAM ... --json benches/results/gpu-h100.json [--commit HASH]
           [--budget 200] [--rounds 3] [--seconds 0.1] [--only REGEX] [--no-compile]
    gpu.py --device cpu       each peer once, at tiny sizes, on the CPU: a look for mistakes; no GPU, no programs

PROGRAM is a benchmark compiled with `--features cuda` that answers `--serve gpu`. Both sides make the same input and are timed by
device events over batches of calls, so a call's time has the gaps between launches in it; "replayed" cases have the calls in
CUDA graphs on both sides. Cold cases rotate through inputs that together exceed the L2. Ratios are peer / ours of a round.
Results are compared where a peer computes the same; a difference is written down, and the exit status is 1.

The budget is spread over the cases, in the order of `ORDER`; those that it does not reach are listed as skipped. Nothing but
Python is needed: without torch there are no peers and no ceilings of products. Clocks are read, never set.
"""

import argparse
import gc
import os
import platform
import re
import statistics
import subprocess
import time
import warnings
from datetime import date

from common import Ours, cpu, difference, quantiles, ratios, write

warnings.filterwarnings("ignore")
# Importing torch counts.
START = time.monotonic()
try:
    import torch

    import gpu_peers
except ImportError:
    torch = None

# What matters most comes first, so that a short budget measures it.
ORDER = [
    r"pool/gpu mean cold/.*/bf16",
    r"cosine/gpu rows cold/.*/(bf16|f32)",
    r"cosine/gpu count.*/32768 x .*/f16",
    r"token/gpu (greedy|top-p 0.9|all) cold/256 x 32000",
    r"mask/gpu (bernoulli|pack)",
    r"sample/gpu",
    r"attend/gpu .* cold",
    r"pool/gpu .*bf16",
    r"cosine/gpu (groups|pairs|top)",
    r"cosine/gpu count.*/f16",
    r"token/gpu .* cold",
    r"pool/gpu",
    r"cosine/gpu rows",
    r"mask/gpu",
    r"cosine/gpu",
]
# Sizes that are there for runs without a GPU, where times mean nothing.
SMALL = r"/(512|16|40|8) x|/16 ragged|pack hot"
TINY = [
    "pool/gpu mean cold/8 ragged/bf16",
    "pool/gpu mean hot, replayed/8 ragged/f16",
    "pool/gpu mean cold/4 full/f32",
    "pool/gpu max cold/8 ragged/bf16",
    "pool/gpu last cold/8 ragged/bf16",
    "pool/gpu mean, padded cold/8 ragged/bf16",
    "cosine/gpu rows cold/64 x 32/bf16",
    "cosine/gpu rows hot/64 x 32/f32",
    "cosine/gpu groups hot/40 x 5 x 32/bf16",
    "cosine/gpu count/256 x 64/f16",
    "cosine/gpu count prepared/256 x 64/f32",
    "cosine/gpu pairs above 0.9, one side/128 x 64/f16",
    "cosine/gpu top 10/64 x 128 x 64/f16",
    "mask/gpu bernoulli/256 x 2928",
    "mask/gpu exact k/256 x 2928",
    "mask/gpu blocks/256 x 2928",
    "mask/gpu pack cold/744 x 64/bf16",
    *(f"token/gpu {setting} cold/8 x 2000/bf16" for setting in ("greedy", "temperature", "top-k 50", "top-p 0.9", "all")),
]


def rank(name):
    return next((at for at, pattern in enumerate(ORDER) if re.match(pattern, name)), len(ORDER))


class Program:
    """A benchmark of one op, and a second process of it where candle's cases take turns with ours."""

    def __init__(self, path):
        self.path, self.ours, self.other = path, Ours(path, "gpu"), None
        self.cases = self.ours.cases()

    def second(self):
        if self.other is None or self.other.process.poll() is not None:
            self.other = Ours(self.path, "gpu")
        return self.other

    def restart(self):
        self.ours.process.kill()
        self.ours = Ours(self.path, "gpu")


class Candle:
    """candle's ops, a case of our own program, timed as a peer is; in a process of its own, so that both inputs stay."""

    tolerance = 2e-3

    def __init__(self, ours, name):
        self.ours, self.case = ours, name
        self.name = "candle ops" if name.startswith("pool") else "candle, a row at a time on the host"

    def check(self, expected):
        # Drawn tokens are another generator's.
        return difference(expected, self.ours.check(self.case)) if self.case.startswith("pool") else None

    def warm_up(self):
        """Nothing is compiled, and every turn warms up."""

    def time(self, seconds):
        return self.ours.time(self.case, 1, seconds)


def peers_of(name, program, place, failed):
    """Peers that can be made; `failed` has why others cannot."""
    found = []
    if place:
        try:
            found = gpu_peers.peers(name, place)
        except Exception as error:
            failed["torch"] = brief(error)
    candle = name.replace("/gpu ", "/candle gpu ", 1)
    if candle in program.cases:
        found.append(Candle(program.second(), candle))
    return found


def brief(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def compare(name, costs, expected, ours, peers, row, rounds, seconds):
    """Checks and times; what fails leaves its reason in the row."""
    row["peers"], running = {}, []
    for peer in peers:
        try:
            error = peer.check(expected)
            entry = {"error": error}
            if error is not None and not error <= peer.tolerance and expected:
                entry["differs"] = True
            if ", replayed" in name:
                peer.replay()
            peer.warm_up()
        except (Exception, SystemExit) as error:
            row["peers"][peer.name] = {"failed": brief(error)}
            continue
        row["peers"][peer.name] = entry
        running.append((peer, entry, []))
    own = []
    for _ in range(rounds):
        own.append(ours.time(name, 1, seconds))
        for peer, _, turns in running:
            turns.append(peer.time(seconds))
    row["ours"] = quantiles([t for turn in own for t in turn])
    for _, entry, turns in running:
        entry.update(quantiles([t for turn in turns for t in turn]))
        entry.update(ratios(turns, own))
    size, flops = costs
    row["rate"] = (flops or size) / row["ours"]["median"]


def one(row, program, place, rounds, seconds):
    """A whole case: the check, the peers, the rounds."""
    name, failed = row["case"], {}
    expected = program.ours.check(name)
    peers = peers_of(name, program, place, failed)
    compare(name, (row["bytes"], row["flops"]), expected, program.ours, peers, row, rounds, seconds(len(peers)))
    row["peers"] |= {peer: {"failed": why} for peer, why in failed.items()}


def against_ceiling(row, ceilings):
    """Which ceiling a case has: products, reading, or (as much written as read) copying."""
    products = "gemm bf16" if row["case"].endswith("/bf16") else "gemm f16"
    if row.get("ops"):
        # A roofline: op by op the larger of the two.
        if {"read", products} <= ceilings.keys():
            floor = sum(max(size / ceilings["read"], flops / ceilings[products]) for size, flops in row["ops"])
            row |= {"ceiling": "read and gemm, op by op", "floor": floor, "share": floor / row["ours"]["median"]}
        else:
            row |= {"ceiling": None, "share": None}
        return
    if row["flops"]:
        wanted = [products]
    else:
        wanted = ["copy"] if "pack" in row["case"] else ["read", "copy"]
    named = next((name for name in wanted if name in ceilings), None)
    row["ceiling"], row["share"] = named, row["rate"] / ceilings[named] if named else None


def free():
    gc.collect()
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def measure_ceilings(programs, place, seconds):
    found = {}
    for program in programs:
        for name, (size, _) in program.cases.items():
            if name.startswith("machine/gpu "):
                seen, expected = program.ours.check(name)
                if seen != expected:
                    raise SystemExit(f"{name}: the sum is {seen}, not {expected}")
                found[name.removeprefix("machine/gpu ")] = size / min(program.ours.time(name, 1, seconds))
    if place:
        found |= gpu_peers.gemm_rates(place, seconds)
        free()
    return found


def smi():
    """Name, driver and clocks as nvidia-smi reads them; nothing where there is none."""
    fields = ["name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw"]
    try:
        run = lambda *words: subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=20, check=True).stdout
        line = run("-i", "0", "--query-gpu=" + ",".join(fields), "--format=csv,noheader")
        version = re.search(r"CUDA Version:\s*([\d.]+)", run())
    except (OSError, subprocess.SubprocessError):
        return {}
    found = dict(zip(fields, (word.strip() for word in line.splitlines()[0].split(","))))
    return found | {"cuda": version.group(1) if version else None}


def machine(programs):
    device = programs[0].ours.ask("device").split("\t") if programs else []
    before = smi()
    found = {"gpu": device[0] if device else before.get("name", ""), "driver": before.pop("driver_version", None), "cuda": before.pop("cuda", None)}
    if len(device) == 3:
        found |= {"multiprocessors": int(device[1]), "l2_bytes": int(device[2])}
    return found | {"cpu": cpu()[0], "cores": os.cpu_count(), "before": before, "date": str(date.today())}


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "sentence-transformers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def line(row):
    ours = row["ours"]["median"] * 1e6
    share = f"{100 * row['share']:.0f} % of {row['ceiling']}" if row.get("share") else ""
    said = []
    for name, p in row["peers"].items():
        said.append(f"{name} {p['ratio']:.2f}" + (" DIFFERS" if p.get("differs") else "") if "ratio" in p else f"{name} failed")
    return f"{row['case']}: {ours:.1f} us, {share}; " + "; ".join(said)


def measure(args, report, place):
    left = lambda: args.budget - (time.monotonic() - START)
    programs = {op: Program(path) for op, path in (bench.split("=", 1) for bench in args.bench)}
    report["machine"] = machine(list(programs.values()))
    report["ceilings"] = measure_ceilings(programs.values(), place, 0.5)
    print("; ".join(f"{name} {rate / 1e12:.2f} T/s" for name, rate in report["ceilings"].items()), flush=True)
    wanted = re.compile(args.only) if args.only else None
    todo = sorted(
        (
            (name, costs, program)
            for program in programs.values()
            for name, costs in program.cases.items()
            if "/gpu " in name and "machine/" not in name
            if (wanted.search(name) if wanted else not re.search(SMALL, name))
        ),
        key=lambda case: rank(case[0]),
    )
    for at, (name, costs, program) in enumerate(todo):
        if left() < 3:
            report["skipped"] = [name for name, _, _ in todo[at:]]
            break
        began = time.monotonic()
        row = {"case": name, "bytes": costs[0], "flops": costs[1], "ops": program.ours.ops.get(name, [])}
        # Compiling is what takes unforeseen time.
        if place:
            place.compiled = not args.no_compile and left() > 0.3 * args.budget
        try:
            one(row, program, place, args.rounds, lambda peers: min(args.seconds, max(0.01, left() / (len(todo) - at) / 2 / args.rounds / (peers + 1))))
        except SystemExit as error:
            # The program ended: the other cases need not.
            report["failed"].append(f"{name}: {error}")
            print(report["failed"][-1], flush=True)
            program.restart()
            free()
            continue
        free()
        against_ceiling(row, report["ceilings"])
        row["spent_s"] = round(time.monotonic() - began, 2)
        report["rows"].append(row)
        print(line(row), flush=True)
        if args.json:
            write(args.json, report)
    report["machine"]["after"] = smi()
    report["seconds"] = round(time.monotonic() - START, 1)


def rehearse(args):
    """Each peer on the CPU, at a tiny size, against the first that gives numbers."""
    place, bad = gpu_peers.Place("cpu", False), 0
    for name in TINY:
        if not re.search(args.only or "", name):
            continue
        expected = None
        for peer in gpu_peers.peers(name, place):
            if peer.read and expected is None:
                expected = peer.read(peer.run(peer.sets[0]))
            error = peer.check(expected)
            bad += error is not None and not error <= peer.tolerance
            print(f"{name}: {peer.name}: {statistics.median(peer.time(0)) * 1e3:.2f} ms, error {error}", flush=True)
    print(gpu_peers.gemm_rates(place, 0))
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", action="append", default=[])
    parser.add_argument("--json")
    parser.add_argument("--commit", default="")
    parser.add_argument("--budget", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    if args.device == "cpu" and not args.bench:
        if torch is None:
            raise SystemExit("without torch there are no peers to look at")
        raise SystemExit(1 if rehearse(args) else 0)
    place = gpu_peers.Place(args.device, not args.no_compile) if torch and (args.device == "cpu" or torch.cuda.is_available()) else None
    report = {"machine": {}, "versions": versions(), "commit": args.commit, "rounds": args.rounds, "budget": args.budget}
    report |= {"ceilings": {}, "rows": [], "skipped": [], "failed": []}
    if place is None:
        print("no torch that sees a GPU: no peers", flush=True)
    measure(args, report, place)
    if args.json:
        write(args.json, report)
    differing = [(row["case"], peer) for row in report["rows"] for peer, p in row["peers"].items() if p.get("differs")]
    for case, peer in differing:
        print(f"{case}: {peer} gives other results than ours")
    if report["skipped"]:
        print(f"the budget ended before {len(report['skipped'])} cases")
    raise SystemExit(1 if differing or report["failed"] else 0)


if __name__ == "__main__":
    main()

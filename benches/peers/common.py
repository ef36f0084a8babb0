"""What `ops.py` and `gpu.py` share: the benchmark programs, the input of both sides, peers, figures of a run."""

import json
import os
import statistics
import subprocess
import time
from datetime import date

THRESHOLDS = [0.90, 0.93, 0.95, 0.97, 0.99]


class Ours:
    """A benchmark program that answers questions about its cases; `place` = ("gpu",) for those of a GPU."""

    def __init__(self, program, *place):
        self.process = subprocess.Popen([program, "--serve", *place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        try:
            self.process.stdin.write("\t".join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the benchmark ended at {words}")
        return line.rstrip("\n")

    def cases(self):
        line, found = self.ask("list"), {}
        # Of a case of many ops: bytes and operations of each.
        self.ops = {}
        while line != "end":
            name, size, flops, ops = line.split("\t")
            found[name] = (int(size), int(flops))
            if ops:
                self.ops[name] = [tuple(map(int, op.split(":"))) for op in ops.split(",")]
            line = self.process.stdout.readline().rstrip("\n")
        return found

    def check(self, name):
        return [float(x) for x in self.ask("check", name).split()]

    def time(self, name, threads, seconds):
        return [float(x) for x in self.ask("time", name, threads, seconds).split()]


# ---- the input, as benches/common/mod.rs makes it ----


def values(seed, count):
    import numpy as np

    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def pool_lengths(ragged, batch):
    return [4 + i % 256 * 37 % 57 for i in range(batch)] if ragged else [128] * batch


def digest(tensor):
    flat = tensor.reshape(-1).double()
    return [flat[0].item(), flat[-1].item(), flat.sum().item()]


class Peer:
    """`run(set)` over the sets in turn; `read` makes the numbers that ours are compared with, `None` = another law."""

    def __init__(self, name, sets, run, read=None, tolerance=2e-3):
        self.name, self.sets, self.run, self.read, self.tolerance = name, sets, run, read, tolerance
        self.next = 0

    def turn(self):
        result = self.run(self.sets[self.next])
        self.next = (self.next + 1) % len(self.sets)
        return result

    def check(self, ours):
        """The largest relative difference from ours; `None` where there is nothing to compare."""
        if self.read is None:
            return None
        return difference(ours, self.read(self.run(self.sets[0])))

    def time(self, seconds):
        self.turn()
        times, start = [], time.perf_counter()
        while len(times) < 2 or time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            self.turn()
            times.append(time.perf_counter() - begin)
        return times


# ---- figures ----


def quantiles(times):
    cut = statistics.quantiles(times, n=10) if len(times) > 1 else times * 9
    return {"median": statistics.median(times), "p20": cut[1], "p80": cut[7]}


def difference(a, b):
    return max((abs(x - y) / max(1.0, abs(x)) for x, y in zip(a, b)), default=0.0)


def ratios(turns, own):
    """Peer / ours of each round: median, least, most. Above 1 ours is faster."""
    each = [statistics.median(theirs) / statistics.median(mine) for theirs, mine in zip(turns, own)]
    return {"ratio": statistics.median(each), "ratio_low": min(each), "ratio_high": max(each)}


def cpu():
    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"), lines


def machine():
    """What a result file says of the machine and of the state that was timed."""
    model, lines = cpu()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    features = [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16") if name in flags]
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True).stdout.strip()
    return {"cpu": model, "cores": os.cpu_count(), "features": features, "date": str(date.today()), "commit": commit, "load_before": load()}


def load():
    with open("/proc/loadavg") as file:
        return file.read().split()[:3]


def write(path, report):
    with open(path, "w") as file:
        json.dump(report, file, indent=1)


def warpers(setting):
    """The sampler settings of benches/token.rs as transformers' processors, in order; `ImportError` without it."""
    from transformers.generation import logits_process as hf

    return {
        "greedy": [],
        "temperature": [hf.TemperatureLogitsWarper(0.7)],
        "top-k 50": [hf.TopKLogitsWarper(50)],
        "top-p 0.9": [hf.TopPLogitsWarper(0.9)],
        "all": [
            hf.RepetitionPenaltyLogitsProcessor(1.1),
            hf.TemperatureLogitsWarper(0.7),
            hf.TopKLogitsWarper(50),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.05),
        ],
    }[setting]

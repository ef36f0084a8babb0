#!/usr/bin/env python3
"""The ops beside other libraries: one run, one machine, short turns of each, merged into one table.

    ops.py --bench pool=PROGRAM --bench cosine=PROGRAM ... [--rounds 5] [--seconds 0.3] [--only SUBSTRING]
           [--json FILE] [--table FILE]

PROGRAM is a compiled benchmark (benches/*.rs) that answers `--serve`. `scripts/bench-ops` builds them and calls this.
Both sides make the same input. Before timing, results are compared. A round is one turn of ours and one of every
peer; the ratio of a round is peer / ours, so above 1 we are faster, and the table has the median of the rounds.
Peers: torch (eager and compiled), sentence-transformers, transformers, numpy (OpenBLAS), faiss, simsimd, numkong.
"""

import argparse
import os
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

warnings.filterwarnings("ignore")
import faiss
import numkong
import numpy as np
import simsimd
import torch
import pages
from common import THRESHOLDS, Ours, Peer, difference, digest, load, machine, pool_lengths, quantiles, ratios, values, warpers, write
from threadpoolctl import threadpool_limits

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
COLD_SETS = 4
MASK_ROWS, MASK_TOKENS = 256, 2928


# ---- the input, as benches/common/mod.rs makes it ----


def embeddings(seed, rows, d, dtype):
    x, centres = values(seed, rows * d).reshape(rows, d), values(999, 64 * d).reshape(64, d)
    leaning = np.arange(0, rows, 8)
    x[leaning] += np.float32(3) * centres[leaning // 8 % 64]
    return torch.from_numpy(x).to(TORCH[dtype])


def bits(tensor):
    """A numpy view that the C libraries take: bf16 as its bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def close(seed, rows, d, dtype):
    return torch.from_numpy(values(seed, rows * d).reshape(rows, d) + np.float32(3.5)).to(TORCH[dtype])


# ---- pooling ----


def pool_peers(parts, threads):
    what, shape, dtype = parts
    if what != "mean":
        return []
    from sentence_transformers.models import Normalize, Pooling

    lengths = torch.tensor(pool_lengths(True, 256) if shape == "ragged" else pool_lengths(False, 64))
    width, hidden = int(lengths.max()), 768
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    packed = [
        torch.from_numpy(values(s, int(lengths.sum()) * hidden)).reshape(-1, hidden).to(TORCH[dtype])
        for s in range(COLD_SETS)
    ]

    def padded(states):
        out = torch.zeros(len(lengths), width, hidden, dtype=states.dtype)
        out[mask.bool()] = states
        return out

    wide = [padded(states) for states in packed]
    modules = torch.nn.Sequential(Pooling(hidden, pooling_mode="mean"), Normalize()).eval()

    def library(states):
        with torch.no_grad():
            features = {"token_embeddings": states, "attention_mask": mask}
            return modules(features)["sentence_embedding"]

    def eager(states):
        m = mask[..., None].float()
        mean = (states.float() * m).sum(1) / m.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    def ragged(states):
        mean = torch.segment_reduce(states.float(), "mean", lengths=lengths, axis=0)
        return torch.nn.functional.normalize(mean, dim=1)

    # Ours takes packed rows; models that run padded hold padded ones. Neither pays for the other's layout.
    loose = 2e-2 if dtype != "f32" else 2e-3
    return [
        Peer("sentence-transformers", wide, library, digest, loose * 5),
        Peer("torch padded", wide, eager, digest),
        Peer("torch compiled", wide, torch.compile(eager), digest),
        Peer("torch segment_reduce", packed, ragged, digest),
    ]


# ---- cosine ----


def in_threads(threads, function, a, b, *rest):
    """A library's single-threaded call, on slices."""
    if threads == 1:
        return lambda pair: function(pair[0], pair[1], *rest)
    workers = pool_of(threads)
    cut = np.linspace(0, len(a), threads + 1).astype(int)

    def run(pair):
        parts = [workers.submit(function, pair[0][i:j], pair[1][i:j], *rest) for i, j in zip(cut, cut[1:])]
        return [part.result() for part in parts]

    return run


@lru_cache
def pool_of(threads):
    return ThreadPoolExecutor(threads)


def similarity(parts):
    parts = parts if isinstance(parts, list) else [parts]
    return torch.from_numpy(1.0 - np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1) for p in parts]))


def row_peers(parts, threads):
    what, shape, dtype = parts
    rows, d = map(int, shape.split(" x "))
    sets = COLD_SETS if what == "rows cold" else 1
    tensors = [tuple(embeddings(2 * s + k, rows, d, dtype) for k in (0, 1)) for s in range(sets)]
    raw = [tuple(bits(t) for t in pair) for pair in tensors]
    named = ["bf16"] if dtype == "bf16" else []
    limits = torch.tensor(THRESHOLDS)

    def eager(pair):
        scores = torch.nn.functional.cosine_similarity(pair[0].float(), pair[1].float(), dim=1)
        return scores, scores[:, None] < limits

    peers = [
        Peer("simsimd", raw, in_threads(threads, simsimd.cosine, *raw[0], *named), lambda r: digest(similarity(r))),
        Peer("torch", tensors, eager, lambda r: digest(r[0])),
    ]
    if dtype != "bf16":
        peers.insert(1, Peer("numkong", raw, in_threads(threads, numkong.angular, *raw[0]), lambda r: digest(similarity(r))))
    return peers


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)


def count_peers(parts, threads):
    what, shape, dtype = parts
    rows, d = map(int, shape.split(" x "))
    make = close if what == "count, all close" else embeddings
    tensors = tuple(make(s, rows, d, dtype) for s in (0, 1))
    limits = [np.float32(t) for t in THRESHOLDS]
    plain = tuple(t.float().numpy() for t in tensors)
    raw = tuple(bits(t) for t in tensors)
    one_side = what == "count, one side"

    def blas(pair):
        a, b = unit(pair[0]), unit(pair[1])
        scores = a @ b.T
        return [np.count_nonzero(scores > t) for t in limits]

    def torch_count(pair):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in pair)
        scores = a @ b.T
        return torch.stack([(scores > t).sum() for t in THRESHOLDS])

    def simd(pair):
        distances = np.asarray(simsimd.cdist(*pair, "cosine", threads=threads))
        return [np.count_nonzero(distances < 1 - t) for t in THRESHOLDS]

    if what == "count, peak bytes":
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        blas(plain)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return [("numpy sgemm + compare", peak)]
    if one_side:
        # Every pair i < j once; what the peers do is the whole square.
        plain, tensors = (plain[0], plain[0].copy()), (tensors[0], tensors[0].clone())
        raw = (raw[0], raw[0].copy())
    numbers = None if one_side else lambda counts: [float(c) for c in counts]
    peers = [Peer("numpy sgemm + compare", [plain], blas, numbers)]
    if dtype == "f32":
        peers += [
            Peer("torch", [tensors], torch_count, numbers),
            Peer("torch compiled", [tensors], torch.compile(torch_count), numbers),
        ]
    if dtype == "bf16":
        # Scores rounded to bf16: a faster product, and another answer near the thresholds.
        peers.append(Peer("torch bf16 (scores rounded)", [tensors], torch_count))
    # In half precision it takes 24 times as long as ours, and the run with it.
    if not one_side and dtype == "f32":
        peers.append(Peer("simsimd cdist + compare", [raw], simd, numbers))
    return peers


def top_peers(parts, threads):
    _, shape, dtype = parts
    rows, d = map(int, shape.split(" x "))
    tensors = tuple(embeddings(s, rows, d, dtype).float() for s in (0, 1))
    faiss.omp_set_num_threads(threads)

    def search(pair):
        a, b = unit(pair[0]), unit(pair[1])
        return faiss.knn(a, b, 10, metric=faiss.METRIC_INNER_PRODUCT)[0]

    def eager(pair):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in pair)
        return (a @ b.T).topk(10, dim=1).values

    return [
        Peer("faiss knn", [tuple(t.numpy() for t in tensors)], search, lambda r: digest(torch.from_numpy(r))),
        Peer("torch", [tensors], eager, digest),
    ]


def cosine_peers(parts, threads):
    what = parts[0]
    if what.startswith("rows"):
        return row_peers(parts, threads)
    if what.startswith("count"):
        return count_peers(parts, threads)
    return top_peers(parts, threads) if what == "top 10" else []


# ---- masks and tokens: another generator, so times only ----


def mask_peers(parts, threads):
    what = parts[0]
    if what == "bernoulli":
        return [
            Peer("torch rand + nonzero", [None], lambda _: (torch.rand(MASK_ROWS, MASK_TOKENS) >= 0.99).nonzero()),
            Peer("numpy random + nonzero", [None], lambda _: np.nonzero(np.random.default_rng(1).random((MASK_ROWS, MASK_TOKENS), np.float32) >= 0.99)),
        ]
    if what == "exact k":
        return [Peer("torch rand + topk + sort", [None], lambda _: torch.rand(MASK_ROWS, MASK_TOKENS).topk(29, dim=1, largest=False).indices.sort(dim=1))]
    if what == "pack":
        packed, hidden = map(int, parts[1].split(" x "))
        text, image = (torch.from_numpy(values(n, n * hidden)).reshape(n, hidden).bfloat16() for n in (64, MASK_TOKENS))
        source = torch.cat([text, image])
        index = torch.randint(0, len(source), (packed,))
        return [Peer("torch cat + index_select", [None], lambda _: torch.cat([text, image]).index_select(0, index))]
    return []


def token_peers(parts, threads):
    setting, shape, dtype = parts
    rows, vocab = map(int, shape.split(" x "))
    sets = [(torch.from_numpy(values(s, rows * vocab)).reshape(rows, vocab) * 5).to(TORCH[dtype]) for s in range(COLD_SETS)]
    history = torch.arange(200)[None].expand(rows, -1)
    chain = warpers(setting)

    def generate(logits):
        scores = logits.float()
        for step in chain:
            scores = step(history, scores)
        if setting == "greedy":
            token = scores.argmax(1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(1), 1)
        return token, scores.log_softmax(1).gather(1, token)

    read = (lambda r: [r[0][0].item(), r[0][-1].item()]) if setting == "greedy" and dtype == "f32" else None
    return [Peer("transformers + multinomial", sets, generate, read)]


PEERS = {"pool": pool_peers, "cosine": cosine_peers, "mask": mask_peers, "token": token_peers}


# ---- the run ----


def compare(ours, name, size, flops, threads, rounds, seconds, ceilings):
    op, *parts = name.split("/")
    peers = PEERS.get(op, lambda *_: [])(parts, threads)
    row = {"case": name, "threads": threads, "bytes": size, "flops": flops, "peers": {}}
    if "peak bytes" in name:
        row["peak_bytes"] = ours.check(name)[0]
        row["peers"] = {peer: {"peak_bytes": peak} for peer, peak in peers}
        return row
    if op == "pool" and parts[0] == "mean":
        # candle's composed ops are a case of the same program.
        candle = "/".join([op, "candle ops", *parts[1:]])
        row["peers"]["candle ops"] = {"error": difference(ours.check(name), ours.check(candle)), "times": []}
    expected = ours.check(name)
    for peer in peers:
        error = peer.check(expected)
        if error is not None and error > peer.tolerance:
            raise SystemExit(f"{name}: {peer.name} gives {error:.1e} other results than ours")
        row["peers"][peer.name] = {"error": error, "times": []}
    own = []
    for _ in range(rounds):
        own.append(ours.time(name, threads, seconds))
        for peer in peers:
            row["peers"][peer.name]["times"].append(peer.time(seconds))
        if "candle ops" in row["peers"]:
            row["peers"]["candle ops"]["times"].append(ours.time(candle, threads, seconds))
    row["ours"] = quantiles([t for turn in own for t in turn])
    for peer in row["peers"].values():
        turns = peer.pop("times")
        peer.update(quantiles([t for turn in turns for t in turn]))
        peer.update(ratios(turns, own))
    seconds_each = row["ours"]["median"]
    if flops:
        row["rate"], ceiling = flops / seconds_each, ceilings[threads].get("sgemm")
    else:
        row["rate"], ceiling = size / seconds_each, ceilings[threads].get("read")
    row["share"] = row["rate"] / ceiling if ceiling else None
    return row


def measure_ceilings(ours, threads, seconds):
    found = {}
    for name, (size, flops) in ours.cases().items():
        if name.startswith("machine/"):
            best = min(ours.time(name, threads, seconds))
            found[name.split("/")[1]] = (flops or size) / best
    return found


def versions():
    import sentence_transformers
    import transformers

    names = {"torch": torch, "numpy": np, "faiss": faiss, "sentence-transformers": sentence_transformers, "transformers": transformers}
    found = {name: module.__version__ for name, module in names.items()}
    from importlib.metadata import version

    return found | {name: version(name) for name in ("simsimd", "numkong")}


def row_text(row):
    """A row as the page has it, against each peer on the same number of threads."""
    return pages.ops_cell(row, {name: (p["ratio"], p["ratio_low"], p["ratio_high"], row["threads"]) for name, p in row["peers"].items()})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    parser.add_argument("--pages", action="store_true", help="write the figures of the pages anew")
    args = parser.parse_args()
    programs = {name: Ours(path) for name, path in (bench.split("=", 1) for bench in args.bench)}
    report = {"machine": machine(), "versions": versions(), "rounds": args.rounds, "ceilings": {}, "rows": []}
    threads = sorted({1, os.cpu_count()})
    ceilings = {n: measure_ceilings(programs["cosine"], n, 1.0) for n in threads}
    for op, ours in programs.items():
        for name, (size, flops) in ours.cases().items():
            if name.startswith("machine/") or "candle ops" in name or args.only not in name:
                continue
            for n in threads:
                torch.set_num_threads(n)
                with threadpool_limits(n):
                    row = compare(ours, name, size, flops, n, args.rounds, args.seconds, ceilings)
                report["rows"].append(row)
                if args.json:
                    write(args.json, report)
                print(row_text(row) if "ours" in row else f"{name}: {row['peak_bytes'] / 1e6:.1f} MB, {row['peers']}", flush=True)
                if "peak_bytes" in row:
                    break
    report["machine"]["load_after"] = load()
    report["ceilings"] = {str(n): c for n, c in ceilings.items()}
    if args.json:
        write(args.json, report)
    if args.pages:
        pages.make(pages.HERE.parents[2], write=True)


if __name__ == "__main__":
    main()

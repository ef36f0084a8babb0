"""The peers of `gpu.py`: torch on CUDA, eager and compiled, with sentence-transformers, transformers and Triton where installed.

`peers(name, place)` gives those of one GPU case. Inputs are the case's own, made on the device; peers that need a layout or a
preparation of theirs get it before the clock starts, as ours does. Each call ends where ours ends: with its results on the GPU.
"""

import re

import torch
import torch.nn.functional as F
from common import THRESHOLDS, Peer, digest, pool_lengths, warpers

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
HIDDEN = 768
COLD_BYTES = 512 << 20
REPLAYED = 16
BATCH_SECONDS = 2e-3
# What is compiled: seconds each, so few. The default mode, and for some a second one.
COMPILED = {
    "pool/gpu mean cold/8192 ragged/bf16": ["default", "max-autotune-no-cudagraphs"],
    "pool/gpu mean cold/4096 full/bf16": ["default"],
    "pool/gpu mean hot/256 ragged/bf16": ["reduce-overhead"],
    "cosine/gpu rows cold/1000000 x 768/bf16": ["default"],
    "cosine/gpu groups hot/2000 x 5 x 768/bf16": ["reduce-overhead"],
    "cosine/gpu count/32768 x 768/f16": ["default"],
    "token/gpu all cold/256 x 32000/bf16": ["default"],
}

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


class Place:
    """Where peers run, and whether to compile."""

    def __init__(self, device, compiled):
        self.device, self.compiled, self.replayed = device, compiled, False
        self.cuda = device == "cuda"
        # Products with f32 sums, also between the parts of a split one.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def sets(self, kept, size):
        return max(2, -(-COLD_BYTES // size)) if kept and self.cuda else 1

    def modes(self, name):
        modes = COMPILED.get(name, []) if self.compiled else []
        # What is captured anyway cannot record graphs of its own.
        return ["default"] if modes and self.replayed else modes


class GpuPeer(Peer):
    """A peer timed by device events over batches of calls, as ours is; `replayed` = its calls in a CUDA graph."""

    def __init__(self, place, name, sets, run, read=None, tolerance=2e-3):
        super().__init__(name, sets, run, read, tolerance)
        self.place, self.calls = place, 1

    def replay(self):
        """From now on a turn is the replay of a graph of calls. Raises where a call waits for the device."""
        if not self.place.cuda:
            return
        for _ in range(3):
            self.turn()
        torch.cuda.synchronize()
        graph, run, sets = torch.cuda.CUDAGraph(), self.run, self.sets
        with torch.cuda.graph(graph):
            kept = [run(sets[call % len(sets)]) for call in range(REPLAYED)]
        del kept
        self.sets, self.next, self.run, self.calls = [None], 0, lambda _: graph.replay(), REPLAYED

    def warm_up(self):
        """The first calls compile, and record a graph in "reduce-overhead"."""
        for _ in range(3):
            self.turn()
        if self.place.cuda:
            torch.cuda.synchronize()

    def batch(self, turns):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.turn()
        start.record()
        for _ in range(turns):
            self.turn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def time(self, seconds):
        if not self.place.cuda:
            return super().time(seconds)
        turns = 1
        while self.batch(turns) < BATCH_SECONDS:
            turns *= 2
        times, spent = [], 0.0
        while not times or (len(times) < 3 and spent < 1) or spent < seconds:
            took = self.batch(turns)
            times.append(took / (turns * self.calls))
            spent += took
        return times


# ---- the input, as benches/common/mod.rs makes it ----


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def values(place, seed, count):
    out = torch.empty(count, device=place.device)
    shift = lambda z, by: (z >> by) & ((1 << (64 - by)) - 1)
    for start in range(0, count, 1 << 26):
        end = min(count, start + (1 << 26))
        z = torch.arange(start + 1, end + 1, dtype=torch.int64, device=place.device) * signed(0x9E3779B97F4A7C15) + seed
        z = (z ^ shift(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shift(z, 27)) * signed(0x94D049BB133111EB)
        out[start:end] = shift(z ^ shift(z, 31), 40).float() / (1 << 23) - 1
    return out


def embeddings(place, seed, rows, d, dtype):
    x, centres = values(place, seed, rows * d).view(rows, d), values(place, 999, 64 * d).view(64, d)
    leaning = torch.arange(0, rows, 8, device=place.device)
    x[leaning] += 3 * centres[leaning // 8 % 64]
    return x.to(TYPES[dtype])


# ---- pooling ----


def pool_peers(name, what, shape, dtype, place):
    batch, layout = shape.split()
    lengths = torch.tensor(pool_lengths(layout == "ragged", int(batch)), device=place.device)
    width = 60 if "padded" in what else int(lengths.max())
    tokens = int(lengths.sum())
    mask = torch.arange(width, device=place.device)[None] < lengths[:, None]
    count = place.sets("cold" in what, tokens * HIDDEN * TYPES[dtype].itemsize)

    def padded(seed):
        if "padded" in what:
            return values(place, seed, len(lengths) * width * HIDDEN).to(TYPES[dtype]).view(-1, width, HIDDEN)
        out = torch.zeros(len(lengths), width, HIDDEN, dtype=TYPES[dtype], device=place.device)
        out[mask] = values(place, seed, tokens * HIDDEN).to(TYPES[dtype]).view(-1, HIDDEN)
        return out

    wide = [padded(seed) for seed in range(count)]
    if "max" in what:
        largest = lambda x: F.normalize(x.masked_fill(~mask[..., None], -torch.inf).amax(1).float(), dim=1)
        return [GpuPeer(place, "torch", wide, largest, digest)]
    if "last" in what:
        at, last = torch.arange(len(lengths), device=place.device), lengths - 1
        return [GpuPeer(place, "torch", wide, lambda x: F.normalize(x[at, last].float(), dim=1), digest)]

    def mean(states):
        m = mask[..., None].float()
        return F.normalize((states.float() * m).sum(1) / m.sum(1), dim=1)

    def in_own_type(states):
        m = mask[..., None].expand(states.size()).to(states.dtype)
        return F.normalize((states * m).sum(1) / m.sum(1).clamp(min=1e-9), dim=1)

    # Sums in half precision, and a sum over all results of errors that have a sign.
    loose = 2e-3 if dtype == "f32" else 0.5
    peers = [
        GpuPeer(place, "torch padded, f32", wide, mean, digest),
        GpuPeer(place, "torch padded, as sentence-transformers", wide, in_own_type, digest, loose),
    ]
    peers += [GpuPeer(place, f"torch compiled ({mode})", wide, compiled(mean, mode), digest) for mode in place.modes(name)]
    try:
        from sentence_transformers.models import Normalize, Pooling

        modules = torch.nn.Sequential(Pooling(HIDDEN, pooling_mode="mean"), Normalize()).eval()
        ones = mask.long()

        def library(states):
            with torch.no_grad():
                return modules({"token_embeddings": states, "attention_mask": ones})["sentence_embedding"]

        peers.append(GpuPeer(place, "sentence-transformers", wide, library, digest, loose))
    except ImportError:
        pass
    if "padded" not in what:
        packed = [x[mask] for x in wide]
        run = lambda x: F.normalize(torch.segment_reduce(x.float(), "mean", lengths=lengths, axis=0, unsafe=True), dim=1)
        peers.append(GpuPeer(place, "torch segment_reduce", packed, run, digest))
    return peers


def compiled(function, mode):
    torch._dynamo.reset()
    run = torch.compile(function, mode=mode, dynamic=False)
    if mode != "reduce-overhead":
        return run

    def marked(argument):
        torch.compiler.cudagraph_mark_step_begin()
        return run(argument)

    return marked


# ---- cosine ----


def unit(x):
    return F.normalize(x.float(), dim=1).to(x.dtype)


def read_scores(result):
    scores, below = result
    return digest(scores) + below.reshape(-1, len(THRESHOLDS)).sum(0).tolist()


def row_peers(name, what, shape, dtype, place):
    n, d = map(int, shape.split(" x "))
    limits = torch.tensor(THRESHOLDS, device=place.device)
    count = place.sets("cold" in what, 2 * n * d * TYPES[dtype].itemsize)
    sets = [tuple(embeddings(place, 2 * s + k, n, d, dtype) for k in (0, 1)) for s in range(count)]

    def score(pair):
        scores = F.cosine_similarity(pair[0].float(), pair[1].float(), dim=1)
        return scores, scores[:, None] < limits

    peers = [GpuPeer(place, "torch cosine_similarity", sets, score, read_scores)]
    return peers + [GpuPeer(place, f"torch compiled ({mode})", sets, compiled(score, mode), read_scores) for mode in place.modes(name)]


def group_peers(name, what, shape, dtype, place):
    references, _, d = map(int, shape.split(" x "))
    sizes = torch.tensor([3 + r * 37 % 5 for r in range(references)], device=place.device)
    n, widest = int(sizes.sum()), 7
    owner = torch.repeat_interleave(torch.arange(references, device=place.device), sizes)
    within = torch.arange(n, device=place.device) - (sizes.cumsum(0) - sizes)[owner]
    candidates, refs = embeddings(place, 0, n, d, dtype), embeddings(place, 1, references, d, dtype)
    wide = torch.zeros(references, widest, d, dtype=candidates.dtype, device=place.device)
    wide[owner, within] = candidates
    there = torch.arange(widest, device=place.device)[None] < sizes[:, None]
    limits = torch.tensor(THRESHOLDS, device=place.device)

    def first_below(scores):
        below = (scores[..., None] < limits) & there[..., None]
        return below.any(1), below.int().argmax(1)

    def packed(pair):
        scores = F.cosine_similarity(pair[0].float(), pair[1][owner].float(), dim=1)
        table = torch.zeros(references, widest, device=place.device)
        table[owner, within] = scores
        return scores, *first_below(table)

    def einsum(pair):
        c, r = pair[0].float(), pair[1].float()
        scores = torch.einsum("rkd,rd->rk", F.normalize(c, dim=2), F.normalize(r, dim=1))
        return scores, *first_below(scores)

    of_packed = lambda result: read_scores(result[:2])
    of_wide = lambda result: read_scores((result[0][owner, within], result[1]))
    peers = [
        GpuPeer(place, "torch cosine_similarity", [(candidates, refs)], packed, of_packed),
        GpuPeer(place, "torch einsum, padded", [(wide, refs)], einsum, of_wide),
    ]
    return peers + [
        GpuPeer(place, f"torch einsum compiled ({mode})", [(wide, refs)], compiled(einsum, mode), of_wide) for mode in place.modes(name)
    ]


def product(a, b):
    """f32 scores: of half rows by a product that keeps its f32 sums, where torch has it (2.8 on, CUDA)."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T


def in_chunks(pair, consume):
    """`consume` of the scores of as many rows at a time as 1 GiB holds."""
    a, b = pair
    rows = max(1, (1 << 28) // len(b))
    return [consume(product(part, b)) for part in a.split(rows)]


def compare(scores):
    return torch.stack([(scores > t).sum() for t in THRESHOLDS])


if triton:

    @triton.jit
    def count_above(scores, counts, n, t0: tl.constexpr, t1: tl.constexpr, t2: tl.constexpr, t3: tl.constexpr, t4: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr):
        # One pass over the scores, five counts a program, five atomics.
        at = tl.program_id(0).to(tl.int64) * (BLOCK * TURNS) + tl.arange(0, BLOCK)
        c0 = tl.zeros((BLOCK,), tl.int32)
        c1 = tl.zeros((BLOCK,), tl.int32)
        c2 = tl.zeros((BLOCK,), tl.int32)
        c3 = tl.zeros((BLOCK,), tl.int32)
        c4 = tl.zeros((BLOCK,), tl.int32)
        for _ in range(TURNS):
            x = tl.load(scores + at, mask=at < n, other=-2.0)
            c0 += (x > t0).to(tl.int32)
            c1 += (x > t1).to(tl.int32)
            c2 += (x > t2).to(tl.int32)
            c3 += (x > t3).to(tl.int32)
            c4 += (x > t4).to(tl.int32)
            at += BLOCK
        tl.atomic_add(counts, tl.sum(c0).to(tl.int64))
        tl.atomic_add(counts + 1, tl.sum(c1).to(tl.int64))
        tl.atomic_add(counts + 2, tl.sum(c2).to(tl.int64))
        tl.atomic_add(counts + 3, tl.sum(c3).to(tl.int64))
        tl.atomic_add(counts + 4, tl.sum(c4).to(tl.int64))


def triton_compare(scores):
    counts = torch.zeros(len(THRESHOLDS), dtype=torch.int64, device=scores.device)
    block, turns = 2048, 16
    count_above[(triton.cdiv(scores.numel(), block * turns),)](scores, counts, scores.numel(), *THRESHOLDS, BLOCK=block, TURNS=turns)
    return counts


def count_peers(name, what, shape, dtype, place):
    n, d = map(int, shape.split(" x "))
    raw = tuple(values(place, seed, n * d).view(n, d).to(TYPES[dtype]) for seed in (0, 1))
    # Sides that are prepared before the clock starts, as ours are, or by the call.
    ready = "prepared" in what
    pair = tuple(map(unit, raw)) if ready else raw
    units = (lambda pair: pair) if ready else (lambda pair: tuple(map(unit, pair)))
    total = lambda parts: torch.stack(parts).sum(0)
    read = lambda counts: [float(c) for c in counts]
    counting = lambda consume: (lambda pair: total(in_chunks(units(pair), consume)))
    # Units are rounded to the rows' type and decisions to f32: near a threshold the peers may be wrong.
    peers = [
        GpuPeer(place, "torch GEMM alone", [pair], lambda pair: in_chunks(units(pair), lambda s: s[0, 0])),
        GpuPeer(place, "torch GEMM + compare", [pair], counting(compare), read, 0.02),
    ]
    if triton and (place.cuda or interpreted()):
        peers.append(GpuPeer(place, "torch GEMM + one pass (Triton)", [pair], counting(triton_compare), read, 0.02))
    key = re.sub(r"count[^/]*/", "count/", name)
    peers += [GpuPeer(place, f"torch GEMM + compiled compare ({mode})", [pair], counting(compiled(compare, mode)), read, 0.02) for mode in place.modes(key)]
    if dtype == "f32" and place.cuda:
        peers.append(GpuPeer(place, "torch GEMM alone (tf32)", [pair], in_tf32(lambda pair: in_chunks(units(pair), lambda s: s[0, 0]))))
    return peers


def interpreted():
    import os

    return os.environ.get("TRITON_INTERPRET") == "1"


def in_tf32(run):
    def with_tf32(pair):
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return run(pair)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return with_tf32


def pair_peers(name, what, shape, dtype, place):
    n, d = map(int, shape.split(" x "))
    rows = embeddings(place, 0, n, d, dtype)

    def listed(rows):
        units = unit(rows)
        return (product(units, units) > 0.9).triu(1).nonzero()

    return [GpuPeer(place, "torch GEMM + nonzero, the whole square", [rows], listed, lambda found: [float(len(found))], 0.02)]


def top_peers(name, what, shape, dtype, place):
    n, m, d = map(int, shape.split(" x "))
    pair = embeddings(place, 0, n, d, dtype), embeddings(place, 1, m, d, dtype)

    def best(pair):
        found = in_chunks((unit(pair[0]), unit(pair[1])), lambda s: s.topk(10, dim=1))
        return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])

    return [GpuPeer(place, "torch GEMM + topk", [pair], best, lambda result: digest(result[0]), 5e-3)]


def cosine_peers(name, what, shape, dtype, place):
    kind = what.split()[1].rstrip(",")
    of = {"rows": row_peers, "groups": group_peers, "count": count_peers, "pairs": pair_peers, "top": top_peers}
    return of[kind](name, what, shape, dtype, place) if kind in of else []


# ---- masks: another generator, so times only ----

MASK_ROWS, MASK_TOKENS, ATTEMPTS, TEXT = 256, 2928, 8, 64


def mask_peers(name, what, shape, dtype, place):
    draw = lambda rows: torch.rand(rows, MASK_TOKENS, device=place.device)
    stay = round(MASK_TOKENS * 0.01)
    if "bernoulli" in what:
        return [GpuPeer(place, "torch rand + nonzero", [None], lambda _: (draw(MASK_ROWS) >= 0.99).nonzero())]
    if "exact k" in what:

        def mae(_):
            order = draw(MASK_ROWS).argsort(dim=1)
            mask = torch.ones(MASK_ROWS, MASK_TOKENS, device=place.device)
            return order[:, :stay], mask.scatter(1, order[:, :stay], 0.0)

        smallest = lambda _: draw(MASK_ROWS).topk(stay, dim=1, largest=False).indices.sort(dim=1)
        return [GpuPeer(place, "torch argsort + scatter, as MAE", [None], mae), GpuPeer(place, "torch rand + topk + sort", [None], smallest)]
    if "pack" not in what:
        return []
    packed, hidden = map(int, shape.split(" x "))
    rows = MASK_ROWS if "cold" in what and place.cuda else ATTEMPTS
    images = rows // ATTEMPTS
    text, image = (values(place, n, n * hidden).bfloat16().view(n, hidden) for n in (TEXT * rows, images * MASK_TOKENS))
    source = torch.cat([text, image])
    kept = torch.randint(0, MASK_TOKENS, (rows, (packed - rows * TEXT) // rows), device=place.device).sort(dim=1).values
    row = torch.arange(rows, device=place.device)[:, None]
    own = torch.arange(TEXT, device=place.device)[None] + row * TEXT
    index = torch.cat([own[:, : TEXT // 2], len(text) + row // ATTEMPTS * MASK_TOKENS + kept, own[:, TEXT // 2 :]], dim=1).flatten()

    def mae(_):
        keep = draw(rows).argsort(dim=1)[:, :stay].view(images, ATTEMPTS, stay, 1).expand(-1, -1, -1, hidden)
        wide = image.view(images, 1, MASK_TOKENS, hidden).expand(-1, ATTEMPTS, -1, -1)
        of_image, of_text = wide.gather(2, keep).view(rows, stay, hidden), text.view(rows, TEXT, hidden)
        return torch.cat([of_text[:, : TEXT // 2], of_image, of_text[:, TEXT // 2 :]], dim=1)

    return [
        GpuPeer(place, "torch index_select of one buffer, indices known", [None], lambda _: source.index_select(0, index)),
        GpuPeer(place, "torch argsort + gather + cat, draws too", [None], mae),
    ]


# ---- tokens: another generator, so only greedy is compared ----


def top_p(scores, p):
    ordered, order = scores.sort(dim=1)
    gone = ordered.softmax(1).cumsum(1) <= 1 - p
    gone[:, -1:] = False
    return scores.masked_fill(gone.scatter(1, order, gone), -torch.inf)


def top_k(scores, k):
    return scores.masked_fill(scores < scores.topk(k, dim=1).values[:, -1:], -torch.inf)


def min_p(scores, p):
    chances = scores.softmax(1)
    return scores.masked_fill(chances < p * chances.amax(1, keepdim=True), -torch.inf)


def penalty(scores, history, by):
    seen = scores.gather(1, history)
    return scores.scatter(1, history, torch.where(seen < 0, seen * by, seen / by))


def drawn(scores, greedy):
    token = scores.argmax(1, keepdim=True) if greedy else torch.multinomial(scores.softmax(1), 1)
    return token, scores.log_softmax(1).gather(1, token)


def token_peers(name, what, shape, dtype, place):
    setting = re.sub(r"^gpu | (hot|cold).*$", "", what)
    rows, vocab = map(int, shape.split(" x "))
    count = place.sets("cold" in what, rows * vocab * 2)
    sets = [(values(place, s, rows * vocab) * 5).to(TYPES[dtype]).view(rows, vocab) for s in range(count)]
    history = torch.arange(200, device=place.device)[None].expand(rows, -1)
    steps = {
        "greedy": lambda x: x,
        "temperature": lambda x: x / 0.7,
        "top-k 50": lambda x: top_k(x, 50),
        "top-p 0.9": lambda x: top_p(x, 0.9),
        "all": lambda x: min_p(top_p(top_k(penalty(x, history, 1.1) / 0.7, 50), 0.9), 0.05),
    }[setting]
    greedy = setting == "greedy"
    own = lambda logits: drawn(steps(logits.float()), greedy)
    read = (lambda result: digest(result[1])) if greedy else None
    peers = [GpuPeer(place, "torch", sets, own, read)]
    peers += [GpuPeer(place, f"torch compiled ({mode})", sets, compiled(own, mode), read) for mode in place.modes(name)]
    try:
        from transformers import LogitsProcessorList

        process = LogitsProcessorList(warpers(setting))
    except ImportError:
        return peers
    return [*peers, GpuPeer(place, "transformers + multinomial", sets, lambda logits: drawn(process(history, logits.float()), greedy), read)]


PEERS = {"pool": pool_peers, "cosine": cosine_peers, "mask": mask_peers, "token": token_peers}


def peers(name, place):
    """The peers of a case; for a "replayed" one, call `replay` of each."""
    place.replayed = ", replayed" in name
    name = name.replace(", replayed", "")
    op, what, shape, *dtype = name.split("/")
    # torch's generator spoils a failed capture for what comes after it.
    if op not in PEERS or (op == "mask" and place.replayed):
        return []
    return PEERS[op](name, what, shape, dtype[0] if dtype else "", place)


def gemm_rates(place, seconds):
    """Operations a second of torch's largest products, the ceilings of all pairs."""
    n = 8192 if place.cuda else 128
    found = {}
    for kind in ("f16", "bf16"):
        pair = tuple(values(place, seed, n * n).view(n, n).to(TYPES[kind]) for seed in (1, 2))
        found[f"gemm {kind}"] = 2 * n**3 / min(GpuPeer(place, kind, [pair], lambda pair: pair[0] @ pair[1].T).time(seconds))
    return found

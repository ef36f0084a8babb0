#!/usr/bin/env python3
"""What the whole ablation costs for LLaVA of 7B: memory, operations and hours, from a cost model whose every input is printed.

    scripts/plan_7b.py [--image-tokens 576] [--samples 5000] [--gpus 1,8] [--memory 141] ... [--out docs/results/plan-7b.md]

Rates are measured: those of benches/results/gpu-h100.json, the newest run, and those of gpu-h100.txt, an older one, for what the newest
skipped. The rest are counts of the architecture and of the benchmarks, or assumptions that an option changes. Training has not run on a
GPU yet: its hours are what its products take at the rate of prefill, so they are a lower bound.
"""

import argparse
import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
H, I, LAYERS, VOCAB = 4096, 11008, 32, 32064
LAYER = 4 * H * H + 3 * H * I
WEIGHTS = LAYERS * LAYER + 2 * VOCAB * H  # with embedding and head
VISION = 24 * (4 * 1024**2 + 2 * 1024 * 4096)  # CLIP-L
# Questions of the official sets, how many of them differ from all others about their image, images, and about how many tokens an answer
# has. POPE asks about the three objects that are there in each of its three splits.
BENCHMARKS = {
    "POPE": (9000, 6000, 500, 3), "GQA": (12578, 12578, 398, 3), "TextVQA": (5000, 5000, 3166, 5), "MMHal": (96, 96, 96, 80),
    "LLaVA-Bench": (60, 60, 24, 150), "MM-Vet": (218, 218, 200, 60), "object recall": (500, 500, 500, 100),
}
# Tokens of a prompt before the question: the system turn and the beginning of the user's.
COMMON = 40
# The training settings of bdhs by default, beside those of --epochs and --rank.
DEFAULT_EPOCHS, DEFAULT_RANK = 3, 128


def measured():
    """Seconds of the timed 7B passes, by name."""
    text = (ROOT / "benches/results/gpu-h100.txt").read_text()
    unit = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
    rows = re.findall(r"^sample/gpu (\S.*?)/bf16\s+([\d.]+) (µs|ms|s)", text, re.M)
    seconds = {name: float(value) * unit[u] for name, value, u in rows}
    newest = json.loads((ROOT / "benches/results/gpu-h100.json").read_text())["rows"]
    pattern = re.compile(r"sample/gpu (.*)/bf16")
    return seconds | {match[1]: row["ours"]["median"] for row in newest if (match := pattern.fullmatch(row["case"]))}


def forward(tokens, context):
    """Operations of a pass over `tokens`, each seeing about `context` keys; without the head."""
    return tokens * (2 * LAYERS * LAYER + 4 * LAYERS * H * context)


def model(o):
    seen = measured()
    prefill_rate = forward(64 * 160, 80) / seen["prefill 7B/64 x 160"]
    token_s = seen["decode 7B/256 forks of 64 prefixes"] / 256
    tile_s = seen["vision tower/16 x 577"] / 16
    tiles = 1 if o.image_tokens <= 576 else 5
    parts, inputs = [], {
        "prefill": f"{prefill_rate / 1e12:.0f} TFLOP/s (64 x 160 rows, measured)",
        "decode": f"{token_s * 1e6:.0f} us a token (256 forks, measured)",
        "vision tower": f"{tile_s * 1e3:.2f} ms a tile of 577 tokens (measured), {tiles} a picture",
    }
    # Sampling: once for all cells.
    attempts = o.samples * o.attempts
    visible = o.image_tokens * (1 - o.rho)
    length = o.prompt + visible + o.answer
    ops = attempts * forward(length, length / 2)
    drawn = attempts * o.answer * o.redrawn
    seconds = ops / prefill_rate + drawn * token_s + o.samples * tiles * tile_s
    parts.append(("sampling, all cells", ops + drawn * 2 * LAYERS * LAYER, seconds))
    # Training: what two answers share is computed once; forward, again on the way down, gradients of inputs.
    tokens = o.prompt + o.image_tokens + 2 * o.answer
    step = forward(tokens, tokens / 2)
    trained = []
    for epochs, rank in ((o.epochs, o.rank), (DEFAULT_EPOCHS, DEFAULT_RANK)):
        train = o.samples * epochs * (3 * step + 6 * lora(rank) * tokens)
        trained.append((f"training a cell ({epochs} epoch{'s' * (epochs > 1)}, LoRA of rank {rank})", train, train / prefill_rate))
    parts += trained
    # Under the base, each different pair once for all cells; their candidates are the attempts.
    reference = o.samples * min(o.attempts, o.cells) * step
    parts.append(("reference log-probabilities, all cells", reference, reference / prefill_rate))
    parts.append(judging(o, prefill_rate, token_s, tiles * tile_s))
    sampling, judge = parts[0], parts[-1]
    models = o.cells + 2
    for (epochs, _), cell in zip(((o.epochs, o.rank), (DEFAULT_EPOCHS, DEFAULT_RANK)), trained):
        ops, seconds = (sampling[i] + reference / (1, prefill_rate)[i - 1] + (o.cells + 1) * cell[i] + models * judge[i] for i in (1, 2))
        parts.append((f"all, {epochs} epoch{'s' * (epochs > 1)}: {o.cells} cells, an SFT control, {models} models judged", ops, seconds))
    parts.insert(-2, (f"judging {models} models", models * judge[1], models * judge[2]))
    return inputs, parts, memory(o, tokens)


def judging(o, prefill_rate, token_s, image_s):
    """Judging one model. Pictures are seen whole. Questions about one image share what their prompts begin with; a question that is asked
    again is computed once. The tower runs once an image, for all models as far as features fit into an eighth of the memory."""
    ops = seconds = 0
    images = sum(images for *_, images, _ in BENCHMARKS.values())
    kept = min(1, o.memory * 1e9 / 8 / (images * o.image_tokens * H * 2))
    runs = kept / (o.cells + 2) + 1 - kept
    for _, questions, images, answer in BENCHMARKS.values():
        shared = COMMON + o.image_tokens
        own = images * forward(shared, shared / 2) + questions * forward(max(o.prompt - COMMON, 1), shared)
        ops += own + questions * answer * 2 * LAYERS * LAYER
        seconds += own / prefill_rate + questions * answer * token_s + images * runs * image_s
    asked = sum(questions for questions, *_ in BENCHMARKS.values())
    return (f"judging a model ({asked:,} questions about {sum(n for *_, n, _ in BENCHMARKS.values()):,} images)", ops, seconds)


def lora(rank):
    """Parameters of an adapter of all linear layers."""
    return LAYERS * rank * (4 * 2 * H + 3 * (H + I))


def memory(o, tokens):
    """Bytes, by what holds them."""
    weights = 2 * (WEIGHTS + VISION)
    cache = 2 * LAYERS * H * 2
    wave = o.wave * (o.prompt + o.image_tokens * (1 - o.rho) + o.answer + 4 * 40)
    layer = (11 * H + 3 * I) * 2 * 2
    return [
        ("weights, bf16", weights),
        (f"sampling: keys and values of a wave of {o.wave} attempts, 512 KiB a token", cache * wave),
        (f"training: adapter of rank {DEFAULT_RANK} in f32, its gradient, two moments", 16 * lora(DEFAULT_RANK)),
        (f"training: a row of states a layer, {o.batch} pairs of {tokens:.0f} tokens", o.batch * tokens * H * 2 * (LAYERS + 1)),
        ("training: one layer's activations and their gradients", o.batch * tokens * layer),
        ("training: logits of the answers in f32, and two of their kind", o.batch * 2 * o.answer * VOCAB * 4 * 3),
    ]


def page(o):
    inputs, parts, held = model(o)
    command = "scripts/plan_7b.py" + (f" --image-tokens {o.image_tokens}" if o.image_tokens != 576 else "")
    lines = [f"# The ablation for LLaVA of 7B, {o.image_tokens} image tokens", "", f"Written by `{command}`: a cost model, no measurement of the whole.", ""]
    lines += ["| input | value |", "|---|---|"]
    inputs |= {"samples": f"{o.samples:,}", "attempts a sample": f"{o.attempts} (the default sweep's 840 for 300)", "rho": o.rho,
               "prompt, answer": f"{o.prompt} and {o.answer} tokens; {o.redrawn:.0%} of an answer drawn again an attempt"}
    lines += [f"| {name} | {value} |" for name, value in inputs.items()]
    counts = [int(n) for n in o.gpus.split(",")]
    lines += ["", "| | PFLOP | " + " | ".join(f"hours on {n} GPU{'s' * (n > 1)}" for n in counts) + " |", "|---|---|" + "---|" * len(counts)]
    for name, ops, seconds in parts:
        hours = " | ".join(f"{seconds / 3600 / n:.2g}" for n in counts)
        lines.append(f"| {name} | {ops / 1e15:,.0f} | {hours} |")
    lines += ["", "Several GPUs: cells, models and shards of samples are independent, so hours divide; none takes more than one GPU.", ""]
    lines += [f"| memory | GB of {o.memory} |", "|---|---|"]
    lines += [f"| {name} | {size / 1e9:.2f} |" for name, size in held]
    train = held[0][1] + sum(size for name, size in held if name.startswith("training"))
    lines += [f"| **sampling, in all** | {(held[0][1] + held[1][1]) / 1e9:.1f} |", f"| **training, in all** | {train / 1e9:.1f} |"]
    lines += ["", "Training has not run on a GPU yet; its hours are a lower bound: products alone, at the rate of prefill."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("image-tokens", 576), ("samples", 5000), ("cells", 20), ("prompt", 60), ("answer", 100), ("epochs", 1), ("rank", 8), ("batch", 8), ("wave", 256), ("memory", 141)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("attempts", 2.8), ("rho", 0.99), ("redrawn", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--gpus", default="1,8")
    parser.add_argument("--out")
    o = parser.parse_args()
    text = page(o)
    print(text, end="")
    if o.out:
        pathlib.Path(o.out).write_text(text)


main()

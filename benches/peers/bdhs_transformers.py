#!/usr/bin/env python3
"""BDHS as one would write it with transformers: guided attempts by a LLaVA-1.5, timed. The peer of `sample/gpu attempts`.

    bdhs_transformers.py --shape 7b --json FILE [--samples 8] [--attempts-per-batch 1,4,16] [--new 40] [--seconds 50]
    bdhs_transformers.py --model DIR ...      a checkpoint in place of random weights made on the device
    bdhs_transformers.py --shape tiny --device cpu --dtype f32      a look for mistakes; no GPU
    bdhs_transformers.py --self-check [--device cpu]      is it the method? On a tiny model; exit status 1 where it is not

An attempt at a sample: a Bernoulli mask over its image tokens, a random cut in each sentence of its reference, and a completion of
every sentence, as rows of one batch with padding on the left. Image features are computed once a picture. Lengths are scripted:
every row draws exactly `--new` tokens, so nothing is read back before the last one. Reference, prompt, and settings of the sampler
are those of our benchmark.

`generate` counts positions from the attention mask, which would renumber what a mask leaves; so the loop is written out, with the
positions of the unmasked sequence. The 4-D mask is passed ready-made: transformers would make it again at every step.

A way is IMAGE/CACHE:
  hidden    masked image tokens are in the sequence, and no query sees them: what equation 6 says
  dropped   they are left out, with the other positions kept: the same function, for who notices
  dynamic   transformers' default cache, which copies itself at every step
  static    room for all tokens from the start
  compiled  static, its decode steps by torch.compile in "reduce-overhead": anew for each size of a batch, so on request only

What ours does besides, in its time: it reads, resizes and scales pictures, tokenises, turns tokens into text at every step to see
whether the sentence ends, and keeps log-probabilities. Pictures here are random pixels on the device, and the times of attempts
are without the vision tower; `with_vision` adds it, once an attempt, which is what a first attempt costs.

With `--shape` there is no tokenizer: `--prompt-tokens` and `--reference-tokens` say how long the texts are, and a word of the
reference has its share. Their defaults are what the checkpoint of our benchmark makes of the same texts.
"""

import argparse
import gc
import os
import platform
import random
import re
import statistics
import time
from datetime import date

from common import cpu, write

# Importing torch counts.
START = time.monotonic()
# A dynamic cache asks for a little more at every step, which without this is new memory each time.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
import torch
import transformers
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText, AutoTokenizer, DynamicCache, LlavaConfig, StaticCache

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SHAPES = {
    "7b": {
        "image_token_index": 32000,
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
        },
    },
    "tiny": {
        "image_token_index": 3,
        "text_config": {
            "model_type": "llama", "vocab_size": 480, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            # Weights large enough that positions and pictures show in the logits.
            "initializer_range": 0.2,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "projection_dim": 16,
        },
    },
}
PROMPT = "USER: <image>\nDescribe the picture. ASSISTANT:"
REFERENCE = "A red bus stands at the corner. Two people wait beside it. The sky is grey and wide. A dog sleeps under a tree."
# Tokens of the prompt before its picture: <s>, USER, the colon, the blank.
BEFORE_IMAGE = 4
SWAPS = {"yes": "no", "no": "yes"}


# ---- the method: what each sentence is completed from ----


def sentences(text):
    """Where each one begins and ends."""
    return [found.span() for found in re.finditer(r"\S.*?(?:[.!?]+(?=\s|$)|$)", text, re.DOTALL)]


def swap(sentence, draws, probability=0.5):
    """A leading yes for a no or a no for a yes, and whether it was swapped."""
    found = re.match(r"\s*(yes|no)\b", sentence, re.IGNORECASE)
    if not found or draws.random() >= probability:
        return sentence, False
    word = found.group(1)
    other = SWAPS[word.lower()]
    other = other.capitalize() if word[0].isupper() else other
    return sentence[: found.start(1)] + other + sentence[found.end(1) :], True


def cut(sentence, swapped, draws):
    """What is kept: all words before a random one, without the blank between; of a single word nothing, unless it was swapped."""
    ends = [word.end() for word in re.finditer(r"\S+", sentence)]
    if len(ends) == 1:
        return re.match(r"\s*\w+", sentence).group() if swapped else ""
    return sentence[: ends[draws.randrange(len(ends) - 1)]]


def contexts(encode, draws, prompt=PROMPT, separator=" ", reference=REFERENCE):
    """For each sentence of the reference the token ids that it is completed from, with one placeholder for the picture, and what of it
    is kept."""
    found = []
    for start, end in sentences(reference):
        kept = cut(*swap(reference[start:end], draws), draws)
        before = reference[:start] if kept else reference[:start].rstrip()
        found.append((encode(f"{prompt}{separator}{before}{kept}" if before or kept else prompt), kept))
    return found


def made_up(image, prompt_tokens, reference_tokens):
    """In place of a tokenizer: so many ids for the prompt, and for each word of the reference its share."""
    words = len(REFERENCE.split())
    ids = lambda first, count: [10 + (first + i) * 7919 % 400 for i in range(count)]

    def encode(text):
        count = -(-len(text[len(PROMPT) :].split()) * reference_tokens // words)
        return [*ids(0, BEFORE_IMAGE), image, *ids(BEFORE_IMAGE, prompt_tokens - BEFORE_IMAGE + count)]

    return encode


# ---- batches ----


def row(context, image, shown, first, drop):
    """A sentence's ids, positions, whether queries see a place, and its row of the features (-1 = text)."""
    at, count = context.index(image), len(shown)
    ids = torch.tensor(context[:at] + [image] * count + context[at + 1 :])
    seen, source = torch.ones(len(ids), dtype=torch.bool), torch.full((len(ids),), -1)
    seen[at : at + count] = shown
    source[at : at + count] = torch.arange(first, first + count)
    places = [ids, torch.arange(len(ids)), seen, source]
    return [place[seen] for place in places] if drop else places


class Batch:
    """Rows beside each other with padding on the left, on the device. `next` = position of the first token to draw."""

    def __init__(self, rows, device):
        # A multiple of eight: attention's kernels copy masks of other widths.
        self.length = -(-max(len(row[0]) for row in rows) // 8) * 8
        ids, positions, seen, source = (
            torch.stack([pad(row[part], (self.length - len(row[part]), 0), value=fill) for row in rows])
            for part, fill in enumerate([0, 0, False, -1])
        )
        pictures = (source.view(-1) >= 0).nonzero().view(-1)
        last = positions[:, -1:] + 1
        parts = (ids, positions, seen, last, pictures, source.view(-1)[pictures])
        self.ids, self.positions, self.seen, self.next, self.pictures, self.source = (part.to(device) for part in parts)


class Bench:
    """A model, the features of its samples' pictures, and what is drawn."""

    def __init__(self, model, encode, samples, rho, temperature, new):
        self.model, self.encode, self.samples, self.rho, self.temperature, self.new = model, encode, samples, rho, temperature, new
        self.device, self.dtype = model.device, model.dtype
        self.image = model.config.image_token_id
        ends = model.generation_config.eos_token_id
        ends = model.config.text_config.eos_token_id if ends is None else ends
        # Never drawn: as `min_new_tokens`.
        self.forbidden = torch.tensor(ends, device=self.device).view(-1)
        self.draws, self.generator = random.Random(1), torch.Generator().manual_seed(1)
        size = model.config.vision_config.image_size
        self.pixels = torch.randn(samples, 3, size, size, device=self.device, dtype=self.dtype)
        self.look()

    @torch.no_grad()
    def look(self):
        """The tower over all pictures: features `[samples x tokens, H]`, and tokens a picture."""
        features = self.model.get_image_features(pixel_values=self.pixels).pooler_output
        self.tokens = len(features[0])
        self.features = torch.cat(list(features))

    def attempts(self, first, count, drop):
        """The rows of so many attempts: a mask each, and a row for each sentence."""
        rows = []
        for attempt in range(first, first + count):
            shown = torch.rand(self.tokens, generator=self.generator) >= self.rho
            start = attempt % self.samples * self.tokens
            rows += [row(context, self.image, shown, start, drop) for context, _ in contexts(self.encode, self.draws)]
        return rows

    def cache(self, length, rows, way, old=None):
        """An empty cache for prompts of a length and `self.new` tokens; a static one is used again where it fits."""
        if way.endswith("dynamic"):
            return DynamicCache(config=self.model.config)
        # Few different widths: each is another allocation and another compiled step.
        width = -(-(length + self.new) // 64) * 64
        if old is not None and old.get_max_length() == width and old.batch_size == rows:
            old.reset()
            return old
        return StaticCache(config=self.model.config, max_cache_len=width)

    @torch.no_grad()
    def complete(self, batch, new, cache, step=None, logits=None, done=None):
        """Tokens `[rows, new]` that the model draws after each row; `step` = the model for a step, `logits` gets those of every one,
        `done` the tokens of every step, and ends it all by saying true."""
        growing = isinstance(cache, DynamicCache)
        width = -(-(batch.length + new) // 8) * 8 if growing else cache.get_max_length()
        seen = pad(batch.seen, (0, width - batch.length))
        later = self.hide(seen[:, None, None, :])
        call = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        mask = self.prefill_mask(seen, batch.length, batch.length if growing else width)
        output = self.model(inputs_embeds=self.embed(batch), attention_mask=mask, position_ids=batch.positions, **call)
        del mask
        step, drawn = self.model if step is None else step, []
        for at in range(new):
            if at > 0:
                end = batch.length + at
                later[..., end - 1] = 0
                mask = later[..., :end] if growing else later
                output = step(input_ids=drawn[-1], attention_mask=mask, position_ids=batch.next + (at - 1), **call)
            scores = output.logits[:, -1].float()
            if logits is not None:
                logits.append(scores.clone())
            scores.index_fill_(1, self.forbidden, float("-inf"))
            drawn.append(torch.multinomial(torch.softmax(scores / self.temperature, dim=-1), 1))
            if done is not None and done(drawn[-1]):
                break
        return torch.cat(drawn, dim=1)

    def embed(self, batch):
        """Embeddings of text, the features in place of pictures."""
        embeds = self.model.get_input_embeddings()(batch.ids)
        embeds.view(-1, embeds.shape[-1]).index_copy_(0, batch.pictures, self.features[batch.source])
        return embeds

    def prefill_mask(self, seen, length, width):
        """`[rows, 1, length, width]`. A hidden place sees itself, so that no query is without keys; nothing sees what comes of it."""
        causal = torch.ones(length, width, dtype=torch.bool, device=self.device).tril()
        own = torch.eye(length, width, dtype=torch.bool, device=self.device)
        return self.hide((causal & seen[:, None, :width] | own)[:, None])

    def hide(self, seen):
        """What is added to scores: nothing where it is seen, else minus infinity."""
        return torch.zeros(seen.shape, device=self.device, dtype=self.dtype).masked_fill_(~seen, float("-inf"))


class Variant:
    """A way of taking so many attempts at once; `most` = sentences of a batch, 0 = all."""

    def __init__(self, bench, way, attempts, most):
        self.bench, self.way, self.attempts, self.most = bench, way, attempts, most
        self.name = f"{way}, {attempts} at once"
        self.first, self.kept = 0, None
        self.step = torch.compile(bench.model, mode="reduce-overhead", dynamic=False) if way.endswith("compiled") else None

    def run(self, new):
        """Seconds that the next attempts take, from an idle device to tokens on the host."""
        bench = self.bench
        synchronize(bench.device)
        begin = time.perf_counter()
        rows = bench.attempts(self.first, self.attempts, self.way.startswith("dropped"))
        most = self.most or len(rows)
        for start in range(0, len(rows), most):
            batch = Batch(rows[start : start + most], bench.device)
            self.kept = bench.cache(batch.length, len(batch.ids), self.way, self.kept)
            bench.complete(batch, new, self.kept, self.step).cpu()
            if self.way.endswith("dynamic"):
                self.kept = None
        self.first, self.sentences, self.length = self.first + self.attempts, len(rows), batch.length
        return time.perf_counter() - begin


# ---- the model ----


def build(shape, device, dtype):
    """A model of random weights, made where they stay."""
    config = LlavaConfig(**SHAPES[shape])
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def load(folder, device, dtype):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.to(device).eval(), lambda text: tokenizer(text).input_ids


# ---- figures ----


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def spread(times):
    """Between the least and the most: there are few."""
    cuts = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    return {"median": statistics.median(times), "p20": cuts[1], "p80": cuts[7]}


def vision(bench):
    """Seconds a picture, all of them in one batch."""
    times = []
    for _ in range(4):
        synchronize(bench.device)
        begin = time.perf_counter()
        bench.look()
        synchronize(bench.device)
        times.append((time.perf_counter() - begin) / bench.samples)
    return spread(times[1:])


def measure(variant, new, deadline, end):
    """Runs until the deadline, two at least unless `end` has come: a row of the report."""
    bench = variant.bench
    free(bench.device)
    variant.run(min(new, 4))
    prefill = statistics.median(variant.run(1) for _ in range(2))
    times = []
    while not times or time.monotonic() < (deadline if len(times) > 1 else end):
        times.append(variant.run(new))
    each = spread([seconds / variant.attempts for seconds in times])
    row = {
        "runs": len(times),
        "sentences": variant.sentences,
        "places": variant.length,
        "seconds_per_attempt": each,
        "with_vision": each["median"] + bench.vision["median"],
        "attempts_per_second": 1 / each["median"],
        "tokens_per_second": variant.sentences * new / (each["median"] * variant.attempts),
        "prefill_per_attempt": prefill / variant.attempts,
        "decode_per_attempt": each["median"] - prefill / variant.attempts,
    }
    if bench.device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def versions():
    found = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def line(row):
    if "failed" in row:
        return f"{row['case']}: failed: {row['failed']}"
    ms = lambda key: f"{1e3 * row[key]:.1f}"
    each = {name: f"{1e3 * seconds:.1f}" for name, seconds in row["seconds_per_attempt"].items()}
    return (
        f"{row['case']}: {each['median']} ms an attempt [{each['p20']}, {each['p80']}], {ms('with_vision')} with vision; "
        f"{ms('prefill_per_attempt')} prefill, {ms('decode_per_attempt')} decode; {row['tokens_per_second']:.0f} tokens/s"
    )


def time_all(args, device):
    dtype = TYPES[args.dtype]
    if args.model:
        model, encode = load(args.model, device, dtype)
    else:
        model = build(args.shape, device, dtype)
        encode = made_up(model.config.image_token_id, args.prompt_tokens, args.reference_tokens)
    bench = Bench(model, encode, args.samples, args.rho, args.temperature, args.new)
    bench.vision = vision(bench)
    synchronize(device)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "self_check")}
    report = {
        "machine": {"gpu": gpu, "cpu": cpu()[0], "date": str(date.today())},
        "versions": versions(),
        "settings": settings | {"image_tokens": bench.tokens},
        "begun_after": time.monotonic() - START,
        "vision_per_picture": bench.vision,
        "rows": [],
        "skipped": [],
    }
    print(f"begun after {report['begun_after']:.1f} s; vision {1e3 * bench.vision['median']:.1f} ms a picture", flush=True)
    todo = [(way, count) for way in args.ways.split(",") for count in map(int, args.attempts_per_batch.split(","))]
    end = START + args.seconds
    for at, (way, count) in enumerate(todo):
        variant = Variant(bench, way, count, args.sentences_per_batch)
        now = time.monotonic()
        if now > end:
            report["skipped"].append(variant.name)
            continue
        row = {"case": variant.name, "way": way, "attempts": count}
        try:
            row |= measure(variant, args.new, now + (end - now) / (len(todo) - at), end)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        report["rows"].append(row)
        print(line(row), flush=True)
    if report["skipped"]:
        print("not reached: " + "; ".join(report["skipped"]))
    if args.json:
        write(args.json, report)
    return any("failed" in row for row in report["rows"])


# ---- is it the method? ----


def self_check(device):
    """Claims about a tiny model in f32, at half of the image tokens masked; true if one does not hold."""
    torch.manual_seed(1)
    model = build("tiny", device, torch.float32)
    new = 6
    bench = Bench(model, made_up(model.config.image_token_id, 22, 52), 2, 0.5, 1.0, new)
    state = bench.draws.getstate(), bench.generator.get_state()
    features = bench.features.clone()

    def run(way, change=None):
        """Batch, tokens, and logits `[steps, rows, vocab]` of the same attempts by a way, with other features."""
        bench.draws.setstate(state[0])
        bench.generator.set_state(state[1])
        batch = Batch(bench.attempts(0, 2, way.startswith("dropped")), device)
        bench.features = features if change is None else change(batch)
        torch.manual_seed(2)
        logits = []
        tokens = bench.complete(batch, new, bench.cache(batch.length, len(batch.ids), way), logits=logits)
        return batch, tokens, torch.stack(logits)

    def replace(hidden):
        """Noise for the features that are hidden, or for those that are not."""

        def change(batch):
            places = batch.source[batch.seen.view(-1)[batch.pictures] != hidden]
            other = features.clone()
            other[places] = torch.randn(len(places), features.shape[1], device=device)
            return other

        return change

    def alone(batch, tokens, at, compact=False):
        """Logits of a row without padding, cache, and hidden places: one pass over what is seen and the tokens drawn."""
        seen = batch.seen[at]
        embeds = torch.cat([bench.embed(batch)[at][seen], model.get_input_embeddings()(tokens[at, :-1])])
        positions = torch.cat([batch.positions[at][seen], batch.next[at] + torch.arange(new - 1, device=device)])
        positions = torch.arange(len(positions), device=device) if compact else positions
        ones = torch.ones(1, len(positions), dtype=torch.long, device=device)
        output = model(inputs_embeds=embeds[None], attention_mask=ones, position_ids=positions[None], use_cache=False)
        return output.logits[0, -new:]

    batch, tokens, logits = run("hidden/dynamic")
    bench.features = features
    with torch.no_grad():
        rows = range(len(tokens))
        original = torch.stack([alone(batch, tokens, at) for at in rows], 1)
        compact = torch.stack([alone(batch, tokens, at, compact=True) for at in rows], 1)
    differ = lambda other: (other - logits).abs().max().item()
    masked = (~batch.seen.view(-1)[batch.pictures]).sum().item()
    ways = ["hidden/static", "dropped/dynamic", "dropped/static"]
    claims = [
        (f"{masked} masked features have no influence", differ(run("hidden/dynamic", replace(True))[2]), True),
        ("features that stay have one", differ(run("hidden/dynamic", replace(False))[2]), False),
        ("positions are the original ones", differ(original), True),
        ("other positions would show", differ(compact), False),
        *((f"{way} draws the same", differ(run(way)[2]), True) for way in ways),
    ]
    failed = not 0 < masked < len(batch.pictures)
    for claim, difference, equal in claims:
        # Logits are of the order of one; sums differ in the last bits.
        right = difference < 1e-3 if equal else difference > 0.05
        failed |= not right
        print(f"{'ok' if right else 'WRONG'}: {claim}: {difference:.1e}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="a checkpoint")
    parser.add_argument("--shape", choices=SHAPES, default="7b", help="random weights of these sizes")
    parser.add_argument("--samples", type=int, default=8, help="pictures; attempts go round them")
    parser.add_argument("--attempts-per-batch", default="1,4,16")
    parser.add_argument("--sentences-per-batch", type=int, default=0, help="most rows of a batch; 0 = all of its attempts")
    parser.add_argument("--ways", default="hidden/static,hidden/dynamic,dropped/static")
    parser.add_argument("--new", type=int, default=40, help="tokens of a sentence")
    parser.add_argument("--prompt-tokens", type=int, default=22, help="the picture not counted")
    parser.add_argument("--reference-tokens", type=int, default=52)
    parser.add_argument("--rho", type=float, default=0.99)
    parser.add_argument("--temperature", type=float, default=1.0, help="the sampler has no other setting")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=TYPES, default="bf16")
    parser.add_argument("--cudnn", action="store_true", help="let torch take cuDNN's attention, which plans anew for each new shape")
    parser.add_argument("--seconds", type=float, default=50, help="no variant begins later, counted from the start of Python")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--self-check", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cuda.enable_cudnn_sdp(args.cudnn)
    raise SystemExit(self_check(device) if args.self_check else time_all(args, device))


if __name__ == "__main__":
    main()

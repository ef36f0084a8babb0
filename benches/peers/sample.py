#!/usr/bin/env python3
"""`bdhs sample` and `bdhs sweep` beside BDHS written with transformers, on this machine's CPU, in one run.

    sample.py --bdhs PROGRAM --model LLAVA_1_5 --anyres LLAVA_1_6 --encoder DIR --encoder DIR --scratch DIR
              [--json FILE] [--pages] [--dtype f32] [--hidden 4,2] [--dropped 20,10] [--only 576]

`scripts/bench-sample` prepares all of it and calls this. Both sides take the ten photos of examples/photos with their references and
the settings of its sweep.toml. The LLaVA-1.5 gives 576 image tokens a picture. The LLaVA-1.6 gets the photos' centre squares,
which are 5 tiles: 2,880 tokens, and 48 that end the rows of the large grid.

Ours is timed as a user waits for it: the command from its start to its last file, models read from disk. What transformers does is
in bdhs_transformers.py; here its sentences end where they end (at a full stop as far as a short rule knows, at the model's own end, or at
the limit of tokens), in one batch until the last row has ended, as `generate` does. Its time is that of attempts alone, from text
to text, image features at hand, and of sentence-transformers on the candidate: without imports, models, and whatever keeps results.

  hidden    masked image tokens are in the sequence, and no query sees them
  dropped   they are left out, with the other positions kept: the same function, so its candidates stand for both

Both ways run with one attempt a batch and with one attempt at each of the ten photos a batch, which is how ours runs its first
round. The projection takes the faster of the two for every attempt, also for later rounds, which have fewer attempts to batch: the
peer is at its best.

The wait of a run with transformers is a projection. A cell takes the attempts that ours took for it; a grid, in one run for each cell, what each
cell would take alone (`candidates_if_independent`); the last attempt a sample may need is an unguided one. An attempt takes its
mean prefill and its mean step, times the mean steps of all attempts that were watched: two alone are short or long by chance. Both
sides must do the same work: a run of ours in which nothing is accepted says how long its sentences are and how its phis lie.
"""

import argparse
import json
import math
import os
import re
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import bdhs_transformers as plain
import torch
import pages
from common import load as load_average
from common import machine, write
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "examples" / "photos"
THRESHOLD = 0.97
SIDE = 480
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
# The end of a sentence that is being written: marks, a blank, and no lower-case letter behind it; or a blank line.
END = re.compile(r"[.!?]+[\"')\]*_”’]*(?=\s+[^\sa-z])|(?<=\S)(?=\s*\n\s*\n)")


# ---- ours ----


def command(arguments, out):
    """Seconds, peak bytes and the summary of a run."""
    begin = time.perf_counter()
    process = subprocess.Popen([*map(str, arguments), "--out", str(out), "--json", "--quiet"], stdout=subprocess.PIPE)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{arguments[1]} failed with {process.returncode}")
    return time.perf_counter() - begin, 1024 * usage.ru_maxrss, json.loads(text)


class Ours:
    """The commands over one model and one data file."""

    def __init__(self, args, model, data, images, scratch):
        self.common = [PHOTOS / "sweep.toml", "--model", model, "--data", data, "--images", images, "--dtype", args.dtype]
        self.program, self.scratch, self.runs = args.bdhs, scratch, 0

    def run(self, what, *options, times):
        """The same run in new folders."""
        seconds, peak = [], 0
        for _ in range(times):
            self.runs += 1
            print(f"{what} {' '.join(map(str, options))}", file=sys.stderr, flush=True)
            out = self.scratch / f"run-{self.runs}"
            wall, bytes_, summary = command([self.program, what, *self.common, *options], out)
            seconds, peak = [*seconds, wall], max(peak, bytes_)
        return {"seconds": statistics.median(seconds), "each": seconds, "peak_bytes": peak, "summary": summary}, out

    def every_attempt(self, encoders):
        """Two guided attempts at each sample, since nothing is below a threshold of -1, and an unguided one."""
        options = [word for encoder in encoders for word in ("--encoder", encoder)]
        run, out = self.run("sweep", *options, "--threshold", -1, "--attempts", 3, times=1)
        store = sqlite3.connect(out / "store.db")
        attempts = [
            {"guided": bool(guided), "tokens": [part["tokens"] for part in json.loads(parts)], "image_tokens": image_tokens}
            for guided, parts, image_tokens in store.execute("SELECT guided, parts, image_tokens FROM candidates")
        ]
        phis = {}
        query = "SELECT name, phi FROM scores JOIN candidates ON key = candidate JOIN encoders ON encoders.id = encoder WHERE guided"
        for name, phi in store.execute(query):
            phis.setdefault(name, []).append(phi)
        drawn = sum(sum(attempt["tokens"]) for attempt in attempts)
        return attempts, phis, drawn / run["summary"]["seconds"]["generate"]


def used(cells):
    """Guided and unguided attempts that cells make, each in a run of its own."""
    guided = unguided = 0
    for cell in cells:
        accepted = cell["accepted_by_attempt"]
        last = len(accepted)
        counts = [*accepted[:-1], accepted[-1] + cell["forced"]]
        guided += sum(count * min(at, last - 1) for at, count in enumerate(counts, 1))
        unguided += counts[-1]
    return guided, unguided


# ---- transformers ----


class Watch:
    """Told the tokens of every step: when the first came, how many each row drew, and what it wrote."""

    def __init__(self, tokenizer, kept, limit, ends, sentences=True):
        self.tokenizer, self.kept, self.limit, self.ends, self.sentences = tokenizer, kept, limit, ends, sentences
        self.drawn, self.texts, self.first, self.steps = [[] for _ in kept], [None] * len(kept), None, 0

    def __call__(self, tokens):
        row_tokens = tokens.view(-1).tolist()
        self.first, self.steps = self.first or time.perf_counter(), self.steps + 1
        for row, token in enumerate(row_tokens):
            if self.texts[row] is not None:
                continue
            drawn = self.drawn[row]
            drawn.append(token)
            text = self.kept[row] + self.tokenizer.decode(drawn, skip_special_tokens=True)
            # An end that the kept part has already is none.
            end = END.search(text, max(len(self.kept[row]) - 1, 0)) if self.sentences else None
            if end and end.end() > len(self.kept[row]):
                self.texts[row] = text[: end.end()]
            elif token in self.ends or len(drawn) >= self.limit:
                self.texts[row] = text.rstrip()
        return all(text is not None for text in self.texts)


class Photos(plain.Bench):
    """Attempts at samples with references of their own."""

    def __init__(self, model, tokenizer, samples, settings):
        self.texts, self.settings, self.tokenizer, self.kept = samples, settings, tokenizer, None
        self.anyres = model.config.model_type == "llava_next"
        super().__init__(model, lambda text: tokenizer(text).input_ids, len(samples), settings["rho"], 1.0, 0)
        self.ends = set(self.forbidden.tolist())
        self.forbidden = torch.tensor([self.image])
        self.spans = [plain.sentences(reference) for _, reference in samples]

    @torch.no_grad()
    def look(self):
        if not self.anyres:
            return super().look()
        tiles = self.pixels[:, None].expand(-1, 5, -1, -1, -1)
        sizes = torch.tensor([[SIDE, SIDE]] * self.samples)
        features = self.model.get_image_features(pixel_values=tiles, image_sizes=sizes).pooler_output
        self.tokens, self.features = len(features[0]), torch.cat(list(features))

    def batch(self, first, count, way, guided=True):
        """One attempt at each of the next `count` samples, in one batch: seconds, and a candidate and its tokens for each."""
        begin = time.perf_counter()
        drop, rows, kept, owners = way.startswith("dropped"), [], [], []
        for sample in ((first + at) % self.samples for at in range(count)):
            prompt, reference = self.texts[sample]
            shown = torch.rand(self.tokens, generator=self.generator) >= self.rho
            if guided:
                found = plain.contexts(self.encode, self.draws, prompt, "", reference)
            else:
                found = [(self.encode(prompt), "")]
            rows += [plain.row(context, self.image, shown, sample * self.tokens, drop) for context, _ in found]
            owners.append((sample, slice(len(kept), len(kept) + len(found))))
            kept += [start for _, start in found]
        limit = self.settings["max_sentence_tokens" if guided else "max_response_tokens"]
        batch = plain.Batch(rows, self.device)
        self.new = limit
        watch = Watch(self.tokenizer, kept, limit, self.ends, guided)
        self.kept = self.cache(batch.length, len(rows), way, self.kept)
        self.complete(batch, limit, self.kept, done=watch)
        candidates = [
            {
                "sample": sample, "text": self.join(sample, watch.texts[rows]) if guided else watch.texts[rows][0],
                "tokens": [len(drawn) for drawn in watch.drawn[rows]],
            }
            for sample, rows in owners
        ]
        total = time.perf_counter() - begin
        return {
            "seconds": total, "prefill": watch.first - begin, "steps": watch.steps, "places": batch.length, "candidates": candidates,
        }

    def join(self, sample, parts):
        """With the reference's own blanks between sentences."""
        _, reference = self.texts[sample]
        text, at = "", 0
        for (start, end), part in zip(self.spans[sample], parts):
            text, at = text + reference[at:start] + part.lstrip(), end
        return text

    def batches_of(self, way, size, batches, guided=True):
        """So many batches, after a short one that does not count."""
        self.settings, whole = self.settings | {"max_sentence_tokens": 2, "max_response_tokens": 2}, self.settings
        self.batch(0, size, way, guided)
        self.settings, found = whole, []
        for number in range(batches):
            found.append(self.batch(number * size, size, way, guided))
            what = "" if guided else ", unguided"
            seconds, steps = found[-1]["seconds"], found[-1]["steps"]
            print(f"{self.tokens} image tokens, {way}{what}, {size} a batch: {seconds:.1f} s, {steps} steps", file=sys.stderr, flush=True)
        return found


class Phi:
    """sentence-transformers, with the references' vectors at hand."""

    def __init__(self, folder, references, dtype):
        self.name = Path(folder).name
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
        self.references = self.encode(references)

    def encode(self, texts):
        return self.model.encode(texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False).double()

    def of(self, attempts):
        """phi of each, and the mean seconds of one at a time."""
        begin = time.perf_counter()
        phis = [float(self.encode([one["text"]])[0] @ self.references[one["sample"]]) for one in attempts]
        return phis, (time.perf_counter() - begin) / len(phis)


def samples(tokenizer, data):
    """Prompt and reference of each photo."""
    found = []
    for sample in json.loads(data.read_text()):
        question, answer = (turn["value"] for turn in sample["conversations"])
        content = [{"type": "image"}, {"type": "text", "text": question.removeprefix("<image>\n")}]
        messages = [{"role": "user", "content": content}]
        found.append((tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), answer))
    return found


def per_attempt(batches, steps):
    """Seconds of one attempt of a batch: its share of the mean prefill, and of so many mean steps."""
    size = len(batches[0]["candidates"])
    prefill = statistics.fmean(one["prefill"] for one in batches)
    step = sum(one["seconds"] - one["prefill"] for one in batches) / sum(max(one["steps"] - 1, 1) for one in batches)
    drawn = sum(sum(candidate["tokens"]) for one in batches for candidate in one["candidates"])
    return {
        "attempts_per_batch": size, "watched": size * len(batches), "measured": [one["seconds"] / size for one in batches],
        "prefill": prefill / size, "step": step / size, "seconds": (prefill + step * (steps - 1)) / size,
        "tokens_per_second": drawn / sum(one["seconds"] for one in batches), "places": max(one["places"] for one in batches),
    }


def timed(bench, todo, guided=True):
    """Seconds an attempt by way and size of a batch, `{way: [{...}, ...]}`, the fastest first; and all candidates. Both ways draw from
    the same distribution, so the steps of a batch of one size are averaged over both."""
    watched = {(way, size): bench.batches_of(f"{way}/static", size, batches, guided) for way, size, batches in todo}
    ways = {}
    for (way, size), found in watched.items():
        steps = statistics.fmean(one["steps"] for (_, other), batches in watched.items() if other == size for one in batches)
        ways.setdefault(way, []).append(per_attempt(found, steps))
    candidates = [candidate for batches in watched.values() for one in batches for candidate in one["candidates"]]
    return {way: sorted(rows, key=lambda row: row["seconds"]) for way, rows in ways.items()}, candidates


def theirs(args, model_folder, data, settings, counts, unguided):
    """Seconds of attempts by way, tokens and phis; of unguided ones where some cell came to them."""
    begin = time.perf_counter()
    model, _ = plain.load(model_folder, torch.device("cpu"), plain.TYPES[args.dtype])
    tokenizer = plain.AutoTokenizer.from_pretrained(model_folder)
    texts = samples(tokenizer, data)
    bench = Photos(model, tokenizer, texts, settings)
    phis = [Phi(encoder, [reference for _, reference in texts], plain.TYPES[args.dtype]) for encoder in args.encoder]
    loaded = time.perf_counter() - begin
    hidden, dropped, together = counts
    todo = [("dropped", 1, dropped), ("dropped", len(texts), together), ("hidden", 1, hidden), ("hidden", len(texts), 1)]
    guided, every = timed(bench, todo)
    ways = {way: {"guided": rows} for way, rows in guided.items()}
    if unguided:
        free, _ = timed(bench, [("dropped", 1, 3), ("dropped", len(texts), 1), ("hidden", 1, 1)], guided=False)
        for way, rows in free.items():
            ways[way]["unguided"] = rows
    scored = {phi.name: phi.of(every) for phi in phis}
    return {
        "image_tokens": bench.tokens,
        "load_seconds": loaded,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "ways": ways,
        "phi_seconds": {name: seconds for name, (_, seconds) in scored.items()},
        "tokens": [one["tokens"] for one in every],
        "phis": {name: values for name, (values, _) in scored.items()},
    }


def project(way, phi_seconds, cells):
    """Seconds of these cells, one run each."""
    total = 0.0
    for cell in cells:
        guided, unguided = used([cell])
        total += guided * way["guided"][0]["seconds"]
        if unguided:
            total += unguided * way["unguided"][0]["seconds"]
        total += (guided + unguided) * phi_seconds[cell["encoder"].removesuffix(AGAIN)]
    return total


# ---- whether both do the same work ----


def spread(values):
    ordered = sorted(values)
    at = lambda q: ordered[round(q * (len(ordered) - 1))]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return {"count": len(values), "mean": statistics.fmean(values), "error": error, "quantiles": {str(q): at(q) for q in QUANTILES}}


def same_work(attempts, our_phis, peer, thresholds):
    """Tokens a sentence and phis of both sides, and how many standard errors the means are apart."""
    found = {}

    def add(name, mine, other):
        a, b = spread(mine), spread(other)
        found[name] = {"ours": a, "transformers": b, "apart": (a["mean"] - b["mean"]) / math.hypot(a["error"], b["error"])}
        return found[name]

    add("tokens a sentence", [n for one in attempts if one["guided"] for n in one["tokens"]], [n for tokens in peer["tokens"] for n in tokens])
    for name, values in our_phis.items():
        row = add(f"phi, {name}", values, peer["phis"][name])
        share = lambda phis, eps: sum(phi < eps for phi in phis) / len(phis)
        row["accepted"] = {str(eps): [share(values, eps), share(peer["phis"][name], eps)] for eps in thresholds}
    return found


# ---- the run ----


AGAIN = "-again"


def again(encoder, scratch):
    """The same encoder under another name: mean pooling by the root of the length, which normalised is the same vector."""
    folder = scratch / (Path(encoder).name + AGAIN)
    folder.mkdir()
    for entry in Path(encoder).resolve().iterdir():
        if entry.is_file():
            (folder / entry.name).symlink_to(entry)
    pooling = json.loads((Path(encoder) / "1_Pooling" / "config.json").read_text())
    if not pooling.get("pooling_mode_mean_tokens"):
        raise SystemExit(f"{encoder}: expected mean pooling")
    (folder / "1_Pooling").mkdir()
    changed = pooling | {"pooling_mode_mean_tokens": False, "pooling_mode_mean_sqrt_len_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(changed))
    return folder


def squares(folder):
    """The photos' centre squares, all of one size, beside their data file."""
    from PIL import Image

    (folder / "images").mkdir()
    for sample in json.loads((PHOTOS / "photos.json").read_text()):
        picture = Image.open(PHOTOS / sample["image"]).convert("RGB")
        side, (width, height) = min(picture.size), picture.size
        left, top = (width - side) // 2, (height - side) // 2
        cut = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cut.save((folder / sample["image"]).with_suffix(".png"))
    text = (PHOTOS / "photos.json").read_text()
    (folder / "photos.json").write_text(re.sub(r"\.(jpg|png)\"", '.png"', text))
    return folder


def compare(args, model, data, counts, scratch):
    settings = tomllib.loads((PHOTOS / "sweep.toml").read_text())
    ours = Ours(args, model, data / "photos.json", data, scratch)
    encoders = [word for encoder in args.encoder for word in ("--encoder", encoder)]
    twins = [word for encoder in args.encoder for word in ("--encoder", args.again[encoder])]
    one, _ = ours.run("sample", "--encoder", args.encoder[0], "--threshold", THRESHOLD, times=3)
    grid, _ = ours.run("sweep", *encoders, times=3)
    wide, _ = ours.run("sweep", *encoders, *twins, times=1)
    unguided = any(used(run["summary"]["cells"])[1] for run in (one, grid, wide))
    attempts, phis, rate = ours.every_attempt(args.encoder)
    peer = theirs(args, model, data / "photos.json", settings["sampling"], counts, unguided)
    if {one_["image_tokens"] for one_ in attempts} != {peer["image_tokens"]}:
        raise SystemExit(f"{peer['image_tokens']} image tokens, ours {sorted({a['image_tokens'] for a in attempts})}")
    rows = []
    for name, run in ((f"one cell, {Path(args.encoder[0]).name}, {THRESHOLD}", one), ("grid", grid), ("grid, each encoder twice", wide)):
        cells = run["summary"]["cells"]
        row = {"case": name, "cells": len(cells), "attempts": used(cells), "generated": run["summary"]["candidates_generated"]}
        row |= {key: run[key] for key in ("seconds", "each", "peak_bytes")} | {"stages": run["summary"]["seconds"], "peers": {}}
        for way, times in peer["ways"].items():
            seconds = project(times, peer["phi_seconds"], cells)
            whole = seconds + len(cells) * peer["load_seconds"]
            row["peers"][way] = {"seconds": seconds, "ratio": seconds / row["seconds"], "with_load": whole, "ratio_with_load": whole / row["seconds"]}
        rows.append(row)
    work = same_work(attempts, phis, peer, settings["grid"]["thresholds"])
    peer["tokens"], peer["phis"] = None, None
    return {"image_tokens": peer["image_tokens"], "rows": rows, "tokens_per_second": rate, "transformers": peer, "same_work": work}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bdhs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a LLaVA-1.5 folder")
    parser.add_argument("--anyres", type=Path, required=True, help="a LLaVA-1.6 folder")
    parser.add_argument("--encoder", type=Path, action="append", required=True, help="the first decides in `bdhs sample`")
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder for runs")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--hidden", default="4,2", help="batches of one attempt to watch, of each model")
    parser.add_argument("--dropped", default="20,10", help="the same, with masked tokens left out")
    parser.add_argument("--together", default="3,3", help="batches of one attempt at each photo, with masked tokens left out")
    parser.add_argument("--only", choices=["576", "2928"], help="image tokens")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--pages", action="store_true", help="write the figures of the pages anew")
    args = parser.parse_args()
    torch.manual_seed(1)
    args.again = {encoder: again(encoder, args.scratch) for encoder in args.encoder}
    from importlib.metadata import version

    versions = plain.versions() | {"sentence-transformers": version("sentence-transformers")}
    settings = {"dtype": args.dtype, "threshold": THRESHOLD, "threads": torch.get_num_threads()}
    report = {"machine": machine(), "versions": versions, "settings": settings, "models": []}
    counts = list(zip(*[map(int, text.split(",")) for text in (args.hidden, args.dropped, args.together)]))
    (args.scratch / "squares").mkdir()
    cases = [("576", args.model, PHOTOS, counts[0])]
    if args.only != "576":
        cases.append(("2928", args.anyres, squares(args.scratch / "squares"), counts[1]))
    for name, model, data, count in cases:
        if args.only in (None, name):
            # Runs of one model are not continued with another.
            runs = args.scratch / f"runs-{name}"
            runs.mkdir()
            report["models"].append(compare(args, model, data, count, runs))
            report["machine"]["load_after"] = load_average()
            print("\n".join(pages.sample_table(report)), flush=True)
            if args.json:
                write(args.json, report)
    if args.pages:
        pages.make(pages.HERE.parents[2], write=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compares the vectors of `bdhs embed` with sentence-transformers on real encoders, in f32 on the CPU.

    parity_encoders.py input --captions CAPTIONS.jsonl [--pairs RUN/cells/CELL/pairs.jsonl] --output INPUT.jsonl
    bdhs embed --encoder ENCODER --input INPUT.jsonl --output VECTORS.npy
    parity_encoders.py compare --encoder ENCODER --input INPUT.jsonl --vectors VECTORS.npy

`input` writes one {"id": .., "text": ..} a line: the first 200 captions of a JSONL file with a field "caption", then the awkward
texts of golden_encoders.py, then each reference of a finished run beside its rejected answer. `compare` prints the largest
difference of a component, and, between neighbours in the file, the largest difference of a cosine and how many decisions
at the ablation's thresholds differ; it fails past --bound (2e-6) or if any decision differs.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np


def write_input(args):
    from golden_encoders import TEXTS
    with open(args.captions) as lines:
        texts = [json.loads(line)["caption"] for line in islice(lines, args.count)]
    if len(texts) < args.count:
        sys.exit(f"{args.captions}: {len(texts)} captions, expected {args.count}")
    answers = []
    if args.pairs:
        for line in open(args.pairs):
            row = json.loads(line)
            answers += [row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")]
    with open(args.output, "w") as out:
        for i, text in enumerate(texts + TEXTS + answers):
            out.write(json.dumps({"id": i, "text": text}) + "\n")


def compare(args):
    from sentence_transformers import SentenceTransformer
    texts = [json.loads(line)["text"] for line in open(args.input)]
    ours = np.load(args.vectors)
    model = SentenceTransformer(str(args.encoder), device="cpu")
    start = time.perf_counter()
    theirs = model.encode(texts, batch_size=32, convert_to_numpy=True)
    seconds = time.perf_counter() - start
    if ours.shape != theirs.shape or ours.dtype != np.float32:
        sys.exit(f"{args.vectors}: {ours.dtype} {ours.shape}, expected float32 {theirs.shape}")
    if not np.isfinite(ours).all():
        sys.exit(f"{args.vectors}: not finite")
    difference = np.abs(ours - theirs).max(axis=1)
    worst = int(difference.argmax())

    def cosines(x):
        x = x.astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return (x[1:] * x[:-1]).sum(axis=1)

    a, b = cosines(ours), cosines(theirs)
    thresholds = np.array([0.90, 0.93, 0.95, 0.97, 0.99])
    decisions = (a[:, None] < thresholds) != (b[:, None] < thresholds)
    near = int((np.abs(a[:, None] - thresholds) < 0.01).any(axis=1).sum())
    print(f"{args.encoder.name}: {len(texts)} texts, largest component difference {difference[worst]:.2e} "
          f"(text {worst}: {texts[worst][:40]!r}), median of the texts' largest {np.median(difference):.2e}, "
          f"largest cosine difference {np.abs(a - b).max():.2e}, {decisions.sum()} of {decisions.size} decisions differ "
          f"({near} pairs within .01 of a threshold); "
          f"sentence-transformers took {seconds:.2f} s")
    if difference[worst] > args.bound:
        sys.exit(f"past the bound {args.bound:g}")
    if decisions.any():
        sys.exit("decisions differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("input")
    command.add_argument("--captions", type=Path, required=True)
    command.add_argument("--pairs", type=Path)
    command.add_argument("--count", type=int, default=200)
    command.add_argument("--output", type=Path, required=True)
    command.set_defaults(run=write_input)
    command = commands.add_parser("compare")
    command.add_argument("--encoder", type=Path, required=True)
    command.add_argument("--input", type=Path, required=True)
    command.add_argument("--vectors", type=Path, required=True)
    command.add_argument("--bound", type=float, default=2e-6)
    command.set_defaults(run=compare)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

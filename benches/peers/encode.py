#!/usr/bin/env python3
"""Whole sentence encoders beside other libraries on the CPU: texts to vectors, one run, ours and each peer in turn.

    encode.py --bench PROGRAM --weights DIR [--rounds 5] [--only SUBSTRING] [--json FILE] [--table FILE]

PROGRAM is the compiled benchmark (benches/encode.rs), DIR holds the encoders' folders; `scripts/bench-encode` builds the one, fetches
the other and calls this. Both sides take the same texts from first byte to last vector: tokens, network, pooling, normalisation.
Before timing, vectors are compared. The ratio of a round is peer / ours, so above 1 we are faster.

  sentence-transformers    `encode` as it is: sorted by length, batches of 32, padded
  ONNX Runtime             the network exported by torch.onnx, all its graph optimisations; tokens by the same fast tokenizer, sorted,
                           batches of 32, pooled by numpy; f32 only
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy as np
import torch
import pages
from common import Ours, load, machine, quantiles, ratios, write
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Least cosine between a vector of ours and a peer's.
CLOSE = {"f32": 1 - 1e-5, "bf16": 0.998}
BATCH = 32
COUNTS = {"all-MiniLM-L6-v2": 128, "all-mpnet-base-v2": 32}


def texts(shape, count):
    """Those of benches/encode.rs."""
    samples = json.loads((ROOT / "examples" / "photos" / "photos.json").read_text())
    words = [word for sample in samples for word in sample["conversations"][1]["value"].split(" ")]
    length = lambda i: 8 + i * 29 % 53 if shape == "ragged" else 32
    return [" ".join(words[(i * 37 + k) % len(words)] for k in range(length(i))) for i in range(count)]


def use_threads(count):
    torch.set_num_threads(count)
    # Read by the tokenizers at every call: their threads are as many as there are cores, or one.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"


class Torch:
    name = "sentence-transformers"

    def __init__(self, folder, dtype, threads, scratch):
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": TYPES[dtype]})

    def run(self, texts):
        return self.model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


class Onnx:
    name = "ONNX Runtime"

    def __init__(self, folder, dtype, threads, scratch):
        import onnxruntime

        path = Path(scratch) / f"{folder.name}.onnx"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if not path.exists():
            export(folder, self.tokenizer, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]

    def run(self, texts):
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = None
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            encoded = self.tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=self.limit, return_tensors="np")
            mask = encoded["attention_mask"]
            states = self.session.run(None, {"input_ids": encoded["input_ids"], "attention_mask": mask})[0]
            # The mean over tokens that are none of the padding; its length does not matter to the unit vector.
            sums = np.matmul(mask[:, None].astype(np.float32), states)[:, 0]
            out = np.empty((len(texts), sums.shape[1]), np.float32) if out is None else out
            out[rows] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return out


def export(folder, tokenizer, path):
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    sample = tokenizer(["A cat sleeps.", "Two dogs run over the wet sand."], padding=True, return_tensors="pt")
    axes = {0: "batch", 1: "length"}
    names = ["input_ids", "attention_mask"]
    with torch.no_grad():
        torch.onnx.export(
            States(), (sample["input_ids"], sample["attention_mask"]), str(path), dynamo=False, opset_version=17,
            input_names=names, output_names=["states"], dynamic_axes=dict.fromkeys([*names, "states"], axes),
        )


def least_cosine(ours, theirs):
    mine = np.asarray(ours, np.float64).reshape(theirs.shape)
    other = np.asarray(theirs, np.float64)
    products = (mine * other).sum(1)
    return float((products / np.linalg.norm(mine, axis=1) / np.linalg.norm(other, axis=1)).min())


def compare(ours, case, folder, threads, rounds, scratch):
    """A row of the report."""
    _, what, dtype = case.split("/")
    name, shape = what.split(", ")
    sentences = texts(shape, COUNTS[name])
    use_threads(threads)
    row = {"case": f"{what}/{dtype}", "threads": threads, "texts": len(sentences), "peers": {}}
    peers = []
    for kind in (Torch, Onnx) if dtype == "f32" else (Torch,):
        try:
            peers.append(kind(folder, dtype, threads, scratch))
        except Exception as error:
            row["peers"][kind.name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    expected = ours.check(case)
    for peer in peers:
        # It warms the peer up besides.
        cosine = least_cosine(expected, np.asarray(peer.run(sentences), np.float32))
        if not cosine >= CLOSE[dtype]:
            raise SystemExit(f"{case}: a vector of {peer.name} has a cosine of {cosine:.6f} with ours")
        row["peers"][peer.name] = {"least_cosine": cosine, "times": []}
    ours.time(case, threads, 0)
    own = []
    for _ in range(rounds):
        own.append(ours.time(case, threads, 0))
        for peer in peers:
            begin = time.perf_counter()
            peer.run(sentences)
            row["peers"][peer.name]["times"].append([time.perf_counter() - begin])
    row["ours"] = quantiles([t for turn in own for t in turn])
    row["texts_per_second"] = len(sentences) / row["ours"]["median"]
    for peer in peers:
        figures = row["peers"][peer.name]
        turns = figures.pop("times")
        figures |= quantiles([t for turn in turns for t in turn]) | ratios(turns, own)
        figures["texts_per_second"] = len(sentences) / figures["median"]
    return row


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "sentence-transformers", "tokenizers", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    parser.add_argument("--pages", action="store_true", help="write the figures of the pages anew")
    args = parser.parse_args()
    ours = Ours(args.bench)
    report = {"machine": machine(), "versions": versions(), "rounds": args.rounds, "rows": []}
    with tempfile.TemporaryDirectory() as scratch:
        for case in ours.cases():
            name = case.split("/")[1].split(", ")[0]
            if args.only not in case:
                continue
            if name not in COUNTS:
                raise SystemExit(f"{name} is no encoder that the peers have: {args.weights} lacks the real ones")
            for threads in sorted({1, os.cpu_count()}):
                row = compare(ours, case, args.weights / name, threads, args.rounds, scratch)
                report["rows"].append(row)
                print(pages.encode_cell(row), flush=True)
                report["machine"]["load_after"] = load()
                if args.json:
                    write(args.json, report)
    if args.pages:
        pages.make(pages.HERE.parents[2], write=True)


if __name__ == "__main__":
    main()

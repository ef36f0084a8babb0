#!/usr/bin/env python3
"""Compares the embedded demo's checkpoints, as this crate runs them, with transformers and sentence-transformers.

    bdhs demo scenes --out scenes --count 40
    bdhs sample scripts/parity_demo.toml --model MODELS/demo-llava --data scenes/data.json \
         --encoder MODELS/demo-mpnet --out runs/parity
    scripts/parity_demo.py MODELS runs/parity scenes

MODELS is the folder of the five checkpoints: src/demo/models, or what `bdhs demo train` wrote. The run answers every
prompt greedily with the whole image in sight; the same answers are asked of transformers, and phi of
sentence-transformers. Needs torch, transformers, sentence-transformers and Pillow.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor


def answers(models: Path, rows: list, scenes: Path) -> list:
    folder = models / "demo-llava"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    texts = []
    for row in rows:
        question = "".join(c["text"] or "" for c in row["prompt"][0]["content"] if c["type"] == "text")
        inputs = processor(
            images=Image.open(scenes / row["images"][0]).convert("RGB"),
            text=f"USER: <image>\n{question} ASSISTANT:",
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=96)
        new = ids[0, inputs["input_ids"].shape[1] :]
        # The blank between "ASSISTANT:" and an answer is the template's.
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).removeprefix(" "))
    return texts


def main() -> None:
    models, run, scenes = map(Path, sys.argv[1:4])
    pairs = next((run / "cells").glob("*/pairs.jsonl"))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    ours = [row["rejected"][0]["content"][0]["text"] for row in rows]
    theirs = answers(models, rows, scenes)
    different = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    print(f"greedy answers: {len(rows) - len(different)} of {len(rows)} equal transformers'")
    for a, b in different[:5]:
        print(f"  ours   {a!r}\n  theirs {b!r}")

    worst = 0.0
    options = {"dtype": torch.float32}
    encoder = SentenceTransformer(str(models / "demo-mpnet"), device="cpu", model_kwargs=options)
    chosen = encoder.encode([row["chosen"][0]["content"][0]["text"] for row in rows])
    rejected = encoder.encode(ours)
    for row, a, b in zip(rows, chosen, rejected, strict=True):
        worst = max(worst, abs(float((a.astype("float64") * b).sum()) - row["phi"]))
    print(f"phi of demo-mpnet: largest difference from sentence-transformers' {worst:.1e}")
    sys.exit(bool(different) or worst > 1e-5)


if __name__ == "__main__":
    main()

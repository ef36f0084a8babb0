#!/usr/bin/env python3
"""Loads an adapter that a training of ours wrote with PEFT on transformers' LLaVA, and compares logits and image features.

    python scripts/check_adapters.py

Needs torch, transformers and peft. `cargo test --test models runs::an_adapter` leaves the adapter and our values where
BDHS_ADAPTER_OUT points; the base is tests/golden/llava/llava15. Fails above 1e-4.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

ROOT = pathlib.Path(__file__).parent.parent
BASE = ROOT / "tests/golden/llava/llava15"


def main():
    with tempfile.TemporaryDirectory() as folder:
        command = ["cargo", "test", "--locked", "--test", "train", "an_adapter"]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"BDHS_ADAPTER_OUT": folder})
        out = pathlib.Path(folder)
        ours = load_file(out / "expected.safetensors")
        base = LlavaForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()
        plain = base(input_ids=ours["ids"].long()).logits[0].detach()
        model = PeftModel.from_pretrained(base, out).eval()
        with torch.no_grad():
            logits = model(input_ids=ours["ids"].long()).logits[0]
            pixels = AutoImageProcessor.from_pretrained(BASE, use_fast=False)(
                Image.open(out / "view.png"), return_tensors="pt"
            )["pixel_values"]
            rows = model.get_image_features(pixels).pooler_output[0]
    found = {
        "logits": (logits - ours["logits"]).abs().max().item(),
        "image features": (rows - ours["features"]).abs().max().item(),
    }
    moved = (logits - plain).abs().max().item()
    print(", ".join(f"{name} differ by {value:.1e}" for name, value in found.items()), f"(the adapter moves logits by {moved:.2f})")
    if max(found.values()) > 1e-4 or moved < 1e-2:
        sys.exit("too far apart, or the adapter says nothing")


if __name__ == "__main__":
    main()

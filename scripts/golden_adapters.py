#!/usr/bin/env python3
"""Writes tests/golden/llava/adapter_*: PEFT adapters for the tiny checkpoints of golden_llava.py, and what PEFT computes.

    python scripts/golden_adapters.py

Needs what golden_llava.py needs, and peft (made with 0.21). The two cover: both generations of tensor names, the two rules of
scaling, adapters of attention, feed-forward, vision tower and projector, and a fully trained projector (modules_to_save).
"""

import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import golden_llava as base

KINDS = {
    "llava15": (
        LlavaForConditionalGeneration,
        {"r": 4, "lora_alpha": 6, "target_modules": r".*(language_model.*(q_proj|v_proj|gate_proj)|linear_[12])"},
    ),
    "next_vicuna": (
        LlavaNextForConditionalGeneration,
        {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "target_modules": r".*(language_model.*(k_proj|o_proj|down_proj)|vision_tower.*(q_proj|fc1))",
            "modules_to_save": ["multi_modal_projector"],
        },
    ),
}


def main():
    torch.manual_seed(1)
    tok = base.tokenizer()
    for kind, (cls, settings) in KINDS.items():
        source = base.OUT / kind
        folder = base.OUT / f"adapter_{kind}"
        model = cls.from_pretrained(source, dtype=torch.float32).eval()
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.copy_(torch.randn_like(p) * 0.15)
                elif "modules_to_save" in name:
                    p.add_(torch.randn_like(p) * 0.05)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"../{kind}"
        base.dump(folder / "adapter_config.json", config)

        results = json.loads((source / "expected" / "results.json").read_text())
        proc = base.processor(kind, source, tok)
        w, h = base.VIEWS["wide"]
        images = proc.image_processor(base.picture(w, h), return_tensors="pt")
        extra = {"image_sizes": images["image_sizes"]} if "image_sizes" in images else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([results["text_ids"]])).logits[0]
            features = model.get_image_features(images["pixel_values"], **extra).pooler_output[0]
        (folder / "expected").mkdir(exist_ok=True)
        tensors = {"text.logits": logits.contiguous(), "wide.features": features.contiguous()}
        save_file(tensors, folder / "expected" / "results.safetensors")
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{folder.name}: {size // 1024} KiB")


if __name__ == "__main__":
    main()

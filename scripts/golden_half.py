#!/usr/bin/env python3
"""Writes tests/golden/half.json: how far transformers and sentence-transformers stray from f32 in f16 and bf16.

    python scripts/golden_half.py

The models are those of tests/golden/llava and tests/golden/encoders, loaded in each dtype; the reference is the f32 result
that lies beside them. An error is [largest, rms]: the largest difference over the largest value, and the root mean
square of the differences over that of the values, over all cases of a model. `sdpa` is transformers' default attention,
`eager` its plain one. Encoders: `half` is the whole pipeline in the dtype. Made with torch 2.11, transformers 5.23,
sentence-transformers 6.0, on a CPU.
"""

import json
import pathlib

import golden_llava as golden
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

GOLDEN = pathlib.Path(__file__).parent.parent / "tests/golden"
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def errors(pairs):
    found = torch.cat([f.double().flatten() for f, _ in pairs])
    right = torch.cat([r.double().flatten() for _, r in pairs])
    assert found.isfinite().all()
    difference = found - right
    largest = (difference.abs().max() / right.abs().max()).item()
    rms = (difference.square().mean().sqrt() / right.square().mean().sqrt()).item()
    return [float(f"{largest:.4g}"), float(f"{rms:.4g}")]


def llava(kind, dtype, attention):
    folder = GOLDEN / "llava" / kind
    cls = LlavaNextForConditionalGeneration if kind.startswith("next") else LlavaForConditionalGeneration
    model = cls.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    proc = golden.processor(kind, folder, Tokenizer.from_file(str(folder / "tokenizer.json")))
    results = json.loads((folder / "expected/results.json").read_text())
    right = load_file(folder / "expected/results.safetensors")
    full, columns = results["full"], results["columns"]
    pairs = {"logits": [], "far": [], "vision": [], "features": []}
    with torch.no_grad():
        for case in results["cases"]:
            name = case["name"]
            inputs = proc(images=[golden.picture(case["width"], case["height"])], text=[full], return_tensors="pt",
                          add_special_tokens=not full.startswith("<s>"))
            pixels = inputs["pixel_values"]
            extra = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
            logits = model(**inputs).logits[0]
            pairs["logits"].append((logits[:, columns], right[f"{name}.logits"]))
            if f"{name}.vision" in right:
                config = model.config
                states = model.model.vision_tower(pixels.flatten(0, -4), output_hidden_states=True).hidden_states
                layers = config.vision_feature_layer
                chosen = torch.cat([states[i] for i in ([layers] if isinstance(layers, int) else layers)], -1)
                if config.vision_feature_select_strategy == "default":
                    chosen = chosen[:, 1:]
                pairs["vision"].append((chosen, right[f"{name}.vision"]))
                features = model.get_image_features(pixels, **extra).pooler_output[0]
                pairs["features"].append((features, right[f"{name}.features"]))
        ids = torch.tensor([results["text_ids"]])
        pairs["logits"].append((model(input_ids=ids).logits[0], right["text.logits"]))
        far = model(input_ids=ids, position_ids=torch.tensor([results["far"]])).logits[0]
        pairs["far"].append((far, right["far.logits"]))
    return {what: errors(found) for what, found in pairs.items()}


def encoder(name, dtype):
    expected = json.loads((GOLDEN / "encoders" / f"{name}.expected.json").read_text())
    model = SentenceTransformer(str(GOLDEN / "encoders" / name), device="cpu").to(dtype)
    found = model.encode(expected["texts"], batch_size=4, convert_to_tensor=True)
    return {"half": errors([(found, torch.tensor(expected["vectors"]))])}


def main():
    out = {"llava": {}, "encoders": {}}
    for kind in golden.KINDS:
        out["llava"][kind] = {
            name: {attention: llava(kind, dtype, attention) for attention in ("sdpa", "eager")}
            for name, dtype in DTYPES.items()
        }
    for name in ("bert", "mpnet", "roberta", "xlm_roberta"):
        out["encoders"][name] = {d: encoder(name, dtype) for d, dtype in DTYPES.items()}
    (GOLDEN / "half.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()

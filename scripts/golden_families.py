#!/usr/bin/env python3
"""Writes tests/golden/llava/families.{json,safetensors}: the tiny checkpoints with other settings, and several images.

    python scripts/golden_families.py

A variant is a checkpoint of tests/golden/llava with some fields of config.json changed and, where it says so, tensors
left out; transformers' logits of a text at usual and at far positions, or its features of one image, go with it. Where
transformers takes what we refuse, the variant holds what the refusal must name instead. A case of several images is a prompt,
its image sizes and the logits of all its positions. Made with transformers 5.23.
"""

import json
import pathlib
import shutil
import tempfile

import golden_llava as golden
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

FOLDER = pathlib.Path(__file__).parent.parent / "tests/golden/llava"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}
TIED = {"tie_word_embeddings": True}

# name, checkpoint, fields, tensors left out (by the end of their names), what is computed.
VARIANTS = [
    ("linear scaling, old spelling", "llava15", {"text_config": {"rope_scaling": {"type": "linear", "factor": 4.0}}}),
    ("linear scaling, new spelling", "llava15", {"text_config": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}}),
    ("llama3 scaling, old spelling", "llava15", {"text_config": {"rope_theta": 500000.0, "rope_scaling": LLAMA3}}),
    ("llama3 scaling, new spelling", "next_mistral", {"text_config": {"rope_parameters": LLAMA3 | {"rope_theta": 2e6}}}),
    ("default spelled out", "llava15", {"text_config": {"rope_scaling": {"rope_type": "default"}}}),
    ("another base", "llava15", {"text_config": {"rope_theta": 5000000.0}}),
    ("two wide heads on one key head", "llava15", {"text_config": {
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}}),
    ("eight narrow heads on four", "next_vicuna", {"text_config": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}}),
    ("norm epsilon", "llava15", {"text_config": {"rms_norm_eps": 0.05}}),
    ("tied", "llava15", TIED, ["lm_head.weight"]),
    ("tied", "next_vicuna", TIED, ["lm_head.weight"]),
    ("tied by the language model", "llava15", {"text_config": TIED}, ["lm_head.weight"]),
    ("tied, yet with an output layer", "llava15", TIED),
    ("tied, yet with an output layer", "next_vicuna", TIED),
    ("tied by the language model, yet with an output layer", "next_vicuna", {"text_config": TIED}),
    ("window as long as the text", "next_mistral", {"text_config": {"sliding_window": 8}}),
    ("last layer", "llava15", {"vision_feature_layer": -1}),
    ("first state", "llava15", {"vision_feature_layer": 0}),
    ("layer counted from the front", "next_vicuna", {"vision_feature_layer": 2}),
    ("two other layers", "llava15_odd", {"vision_feature_layer": [0, -1]}),
    ("class token kept", "llava15", {"vision_feature_select_strategy": "full"}),
    ("class token dropped", "llava15_odd", {"vision_feature_select_strategy": "default"}),
    ("relu in the projector", "llava15", {"projector_hidden_act": "relu"}),
    ("gelu in the tower", "next_vicuna", {"vision_config": {"hidden_act": "gelu"}}),
    ("norm epsilon of the tower", "llava15", {"vision_config": {"layer_norm_eps": 0.05}}),
]
REFUSED = [
    ("dynamic scaling", "llava15", {"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "rope type"),
    ("yarn", "llava15", {"text_config": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}}, "rope type"),
    ("long rope", "llava15", {"text_config": {"rope_scaling": {
        "rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}}, "rope type"),
    ("class token among tiles", "next_vicuna", {"vision_feature_select_strategy": "full"}, "full"),
]
SEVERAL = {
    "llava15": ("<image>\n<image>\n", [(61, 23), (20, 47)]),
    "next_vicuna": ("<image>\n<image>\n", [(61, 23), (20, 47)]),
    "next_mistral": ("<image>\n", [(40, 40)]),
    "next_yi": ("<image>\n<image>\n<image>\n", [(5, 4), (61, 23), (20, 47)]),
}


def merge(into, fields):
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


def changed(folder, base, fields, without):
    """A copy of a checkpoint with other settings, as transformers loads it."""
    source = FOLDER / base
    for file in source.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    merge(config, fields)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not any(n.endswith(w) for w in without)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    cls = LlavaNextForConditionalGeneration if base.startswith("next") else LlavaForConditionalGeneration
    return cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def compute(model, base, fields, tensors, key):
    results = json.loads((FOLDER / base / "expected/results.json").read_text())
    if any(name.startswith(("vision", "projector")) for name in fields):
        kind = json.loads((FOLDER / base / "preprocessor_config.json").read_text())
        pixels = golden.PROCESSORS[kind.pop("image_processor_type")](**kind)(golden.picture(61, 23), return_tensors="pt")
        extra = {"image_sizes": pixels["image_sizes"]} if "image_sizes" in pixels else {}
        # Asked for, since layer 0 as a choice reads as none.
        found = model.get_image_features(pixels["pixel_values"], output_hidden_states=True, **extra)
        features = found.pooler_output[0]
        tensors[f"{key}.features"] = features[:, :12].contiguous()
        return
    ids = torch.tensor([results["text_ids"]])
    tensors[f"{key}.logits"] = model(input_ids=ids).logits[0][:, results["columns"]].contiguous()
    if "sliding_window" not in fields.get("text_config", {}):
        far = model(input_ids=ids, position_ids=torch.tensor([results["far"]])).logits[0]
        tensors[f"{key}.far"] = far[:, results["columns"]].contiguous()


def first_hidden(base):
    """The first row of a text that a sliding window of 5 changes: position 5, which no longer sees position 0."""
    results = json.loads((FOLDER / base / "expected/results.json").read_text())
    ids, logits = torch.tensor([results["text_ids"]]), []
    for window in (5, None):
        with tempfile.TemporaryDirectory() as folder:
            model = changed(pathlib.Path(folder), base, {"text_config": {"sliding_window": window}}, [])
            logits.append(model(input_ids=ids).logits[0])
    return int((logits[0] != logits[1]).any(1).nonzero()[0])


def several(kind, start, sizes, tensors):
    """Logits of a prompt with several images, in next_mistral's case one in each of two turns, and a greedy answer."""
    with tempfile.TemporaryDirectory() as folder:
        model = changed(pathlib.Path(folder), kind, {}, [])
    proc = golden.processor(kind, FOLDER / kind, Tokenizer.from_file(str(FOLDER / kind / "tokenizer.json")))
    turns = [("user", start + "Which is larger?")]
    if kind == "next_mistral":
        turns += [("assistant", "The first one."), ("user", "<image>\nAnd now?")]
        sizes = [*sizes, (61, 23)]
    pictures = [golden.picture(w, h) for w, h in sizes]
    if proc.chat_template == golden.STRING_TEMPLATE:
        messages = [{"role": r, "content": t} for r, t in turns]
    else:
        from golden_prompts import parts
        queue = iter(pictures)
        messages = [{"role": r, "content": parts(t, queue)} for r, t in turns]
    text = proc.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = proc(images=pictures, text=[text], return_tensors="pt",
                  add_special_tokens=not text.startswith(proc.tokenizer.bos_token))
    columns = json.loads((FOLDER / kind / "expected/results.json").read_text())["columns"]
    logits = model(**inputs).logits[0]
    tensors[f"{kind}.several"] = logits[:, columns].contiguous()
    out = model.generate(**inputs, do_sample=False, max_new_tokens=30, eos_token_id=golden.EOS, pad_token_id=golden.PAD)
    says = proc.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"checkpoint": kind, "turns": turns, "sizes": sizes, "says": says}


def main():
    tensors, variants = {}, []
    with torch.no_grad():
        for i, (name, base, fields, *without) in enumerate(VARIANTS):
            without = without[0] if without else []
            with tempfile.TemporaryDirectory() as folder:
                model = changed(pathlib.Path(folder), base, fields, without)
                compute(model, base, fields, tensors, str(i))
            variants.append({"name": name, "checkpoint": base, "fields": fields, "without": without})
        for name, base, fields, named in REFUSED:
            with tempfile.TemporaryDirectory() as folder:
                changed(pathlib.Path(folder), base, fields, [])
            variants.append({"name": name, "checkpoint": base, "fields": fields, "without": [], "refused": named})
        cases = [several(kind, *case, tensors) for kind, case in SEVERAL.items()]
        window = {"checkpoint": "next_mistral", "window": 5, "first_hidden": first_hidden("next_mistral")}
    out = {"variants": variants, "several": cases, "window": window}
    (FOLDER / "families.json").write_text(json.dumps(out, indent=1) + "\n")
    save_file({n: t.float().contiguous() for n, t in tensors.items()}, FOLDER / "families.safetensors")


if __name__ == "__main__":
    main()

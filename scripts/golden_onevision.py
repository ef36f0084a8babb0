#!/usr/bin/env python3
"""Writes tests/golden/onevision: tiny LLaVA checkpoints around Qwen2 and Qwen3, most with a SigLIP tower, and what
transformers computes with them.

    python scripts/golden_onevision.py [checkpoint ...]

With names of checkpoints only those are written. Needs what golden_qwen_vl.py needs, and writes files of the same form
(see there); positions have three equal components. Between them the checkpoints cover LLaVA-OneVision with grids that are
shrunk and with grids that are not, LLaVA-Interleave (`llava`), LLaVA-NeXT around Qwen2 with CLIP and around Qwen3 with
SigLIP, grouped heads, one key head, tied and untied outputs, both generations of tensor names, one and several images.
"""

import json
import math
import pathlib
import sys

import golden_llava as base
import golden_qwen_vl as qwen
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

OUT = pathlib.Path(__file__).parent.parent / "tests/golden/onevision"
TILE = 28
SQUARES = [[TILE * h, TILE * w] for h in range(1, 4) for w in range(1, 4)]
FEW = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
MASKS = 200
KINDS = {
    "onevision": {
        "type": "llava_onevision", "text": "qwen2", "tower": "siglip", "tied": False, "hidden": 32, "inner": 48, "layers": 2,
        "heads": 4, "kv": 2, "head": 8, "vision": 24, "vision_heads": 2, "patch": 7, "depth": 3, "max": 2, "old": False,
    },
    "onevision_tied": {
        "type": "llava_onevision", "text": "qwen2", "tower": "siglip", "tied": True, "hidden": 32, "inner": 40, "layers": 2,
        "heads": 4, "kv": 4, "head": 8, "vision": 36, "vision_heads": 2, "patch": 9, "depth": 2, "max": 9, "old": True,
    },
    "onevision_one": {
        "type": "llava_onevision", "text": "qwen2", "tower": "siglip", "tied": False, "hidden": 28, "inner": 48, "layers": 1,
        "heads": 7, "kv": 1, "head": 4, "vision": 16, "vision_heads": 1, "patch": 5, "depth": 2, "max": 1, "old": False,
    },
    "interleave": {
        "type": "llava", "text": "qwen2", "tower": "siglip", "tied": True, "hidden": 24, "inner": 40, "layers": 2, "heads": 3,
        "kv": 1, "head": 8, "vision": 24, "vision_heads": 4, "patch": 7, "depth": 2, "old": True,
    },
    "next_qwen2": {
        "type": "llava_next", "text": "qwen2", "tower": "clip", "tied": False, "hidden": 32, "inner": 48, "layers": 2, "heads": 4,
        "kv": 2, "head": 8, "vision": 24, "vision_heads": 3, "patch": 7, "depth": 3, "old": True,
    },
    "next_qwen3": {
        "type": "llava_next", "text": "qwen3", "tower": "siglip", "tied": False, "hidden": 40, "inner": 48, "layers": 2, "heads": 4,
        "kv": 2, "head": 12, "vision": 24, "vision_heads": 3, "patch": 7, "depth": 2, "old": False,
    },
}
COMPLETE = ("onevision", "next_qwen3")
CASES = {
    "wide": [(61, 23)],
    "big": [(150, 131)],
    "tall": [(20, 47)],
    "three": [(40, 40), (61, 23), (9, 50)],
}
# ChatML as LLaVA-OneVision's: images first, and a blank behind the role that the open form does not have.
TEMPLATE = """{% for m in messages %}
{{ '<|im_start|>' + m['role'] + ' ' }}
{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}
{% for part in m['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}
{{ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}


def tokenizer():
    tok = qwen.tokenizer()
    tok.add_special_tokens(["<image>", "<video>"])
    return tok


def config(kind, tok):
    k = KINDS[kind]
    text = {
        "model_type": k["text"],
        "vocab_size": tok.get_vocab_size() + 3,
        "hidden_size": k["hidden"],
        "intermediate_size": k["inner"],
        "num_hidden_layers": k["layers"],
        "num_attention_heads": k["heads"],
        "num_key_value_heads": k["kv"],
        "head_dim": k["head"],
        "max_position_embeddings": 2048,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 1,
        "tie_word_embeddings": k["tied"],
    }
    vision = {
        "model_type": f"{k['tower']}_vision_model",
        "hidden_size": k["vision"],
        "intermediate_size": 2 * k["vision"],
        "num_hidden_layers": k["depth"],
        "num_attention_heads": k["vision_heads"],
        "image_size": TILE,
        "patch_size": k["patch"],
    }
    if k["tower"] == "siglip":
        vision["vision_use_head"] = False
    out = {
        "model_type": k["type"],
        "architectures": [CLASSES[k["type"]].__name__],
        "image_token_index": tok.token_to_id("<image>"),
        "tie_word_embeddings": k["tied"],
        "text_config": text,
        "vision_config": vision,
    }
    if k["type"] == "llava_onevision":
        out |= {"video_token_index": tok.token_to_id("<video>"), "vision_aspect_ratio": f"anyres_max_{k['max']}"}
    elif k["tower"] == "siglip":
        out |= {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    if pinpoints(kind):
        out["image_grid_pinpoints"] = pinpoints(kind)
    return out


def pinpoints(kind):
    return {"llava_onevision": SQUARES, "llava_next": FEW}.get(KINDS[kind]["type"])


def image_settings(kind):
    k = KINDS[kind]
    if k["type"] == "llava_next":
        out = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
        out["image_processor_type"] = "LlavaNextImageProcessor"
    else:
        out = {"size": {"height": TILE, "width": TILE}}
        out["image_processor_type"] = "SiglipImageProcessor" if k["type"] == "llava" else "LlavaOnevisionImageProcessor"
    if k["tower"] == "siglip":
        out |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    if pinpoints(kind):
        out["image_grid_pinpoints"] = pinpoints(kind)
    return out


def processor(kind, tok):
    k, settings = KINDS[kind], image_settings(kind)
    settings.pop("image_processor_type")
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if k["type"] == "llava_onevision":
        images = LlavaOnevisionImageProcessorPil(**settings)
        return LlavaOnevisionProcessor(
            images, hf, LlavaOnevisionVideoProcessor(), num_image_tokens=(TILE // k["patch"]) ** 2,
            vision_feature_select_strategy="full", vision_aspect_ratio=f"anyres_max_{k['max']}", chat_template=TEMPLATE,
        )
    cls, images = LlavaProcessor, SiglipImageProcessorPil
    if k["type"] == "llava_next":
        cls, images = LlavaNextProcessor, LlavaNextImageProcessorPil
    clip = k["tower"] == "clip"
    return cls(
        images(**settings), hf, patch_size=k["patch"], vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip), chat_template=TEMPLATE,
    )


def old_names(name):
    name = base.old_names(name)
    return name.replace("vision_tower.vision_model.vision_model.", "vision_tower.vision_model.")


def write_model(kind, tok):
    k, folder = KINDS[kind], OUT / kind
    folder.mkdir(parents=True, exist_ok=True)
    cls, settings = CLASSES[k["type"]], config(kind, tok)
    model = cls(cls.config_class(**json.loads(json.dumps(settings)))).eval()
    with torch.no_grad():
        weights(model, tok)
    tensors = {name: p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    if k["old"]:
        base.dump(folder / "config.json", settings)
        tensors = {old_names(name): p for name, p in tensors.items()}
    else:
        model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base.dump(folder / "preprocessor_config.json", image_settings(kind))
    if kind in COMPLETE:
        tok.save(str(folder / "tokenizer.json"), pretty=False)
        base.dump(folder / "chat_template.json", {"chat_template": TEMPLATE})
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        base.dump(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"} | names)
        eos = tok.token_to_id("<|im_end|>")
        base.dump(folder / "generation_config.json", {"eos_token_id": eos})
    model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return folder, model.eval()


def weights(model, tok):
    """Random weights as golden_llava.py's, which say words only."""
    base.EOS = tok.token_to_id("<|im_end|>")
    base.weights(model, tok)


class Run(qwen.Run):
    """A prompt with its images, embedded once."""

    def __init__(self, kind, model, proc, case):
        self.kind, self.model = kind, model
        self.sizes = CASES[case]
        images = [base.picture(w, h) for w, h in self.sizes]
        self.prompt = proc.apply_chat_template(conversation(len(images)), add_generation_prompt=True, tokenize=False)
        self.text = self.prompt + base.ANSWER
        inputs = proc(images=[images], text=[self.text], return_tensors="pt")
        self.ids = inputs["input_ids"]
        self.is_image = self.ids[0] == model.config.image_token_id
        self.positions = torch.arange(self.ids.shape[1]).expand(3, -1)
        with torch.no_grad():
            extra = {name: inputs[name] for name in ("image_sizes", "batch_num_images") if name in inputs}
            self.grid = torch.tensor([])
            vision = model.get_image_features(inputs["pixel_values"], **extra)
            self.features = torch.cat([f.reshape(-1, f.shape[-1]) for f in vision.pooler_output])
            self.x = model.get_input_embeddings()(self.ids)[0]
            self.x[self.is_image] = self.features
            self.logits = model(**inputs).logits[0]
            again = self.forward(self.x[None], self.positions[:, None], torch.ones_like(self.ids))[0]
        assert (again - self.logits).abs().max() < 1e-4
        self.counts = [len(f.reshape(-1, f.shape[-1])) for f in vision.pooler_output]

    def forward(self, x, positions, mask):
        out = self.model.model.language_model(inputs_embeds=x, position_ids=positions[0], attention_mask=mask, use_cache=False)
        return self.model.lm_head(out.last_hidden_state)


def conversation(images):
    question = [{"type": "image"} for _ in range(images)]
    question.append({"type": "text", "text": "Is the cat near the old house, or naïve?"})
    return [{"role": "user", "content": question}]


def expected(kind, folder, model, tok):
    proc = processor(kind, tok)
    columns = list(range(0, tok.get_vocab_size(), 24)) + [tok.token_to_id(".")]
    results, tensors = {"columns": columns, "cases": []}, {}
    generator = torch.Generator().manual_seed(7)
    for case in CASES:
        if kind in COMPLETE or case in ("wide", "big", "three"):
            run = Run(kind, model, proc, case)
            run.answer_ids = tok.encode(base.ANSWER, add_special_tokens=False).ids
            with torch.no_grad():
                found = qwen.case_of(run, generator, columns, tensors, case)
            del found["positions"], found["grid"]
            results["cases"].append({"name": case, "counts": run.counts} | found)
    text_ids = tok.encode("The dog, near the tree.", add_special_tokens=False).ids
    with torch.no_grad():
        tensors["text.logits"] = model(input_ids=torch.tensor([text_ids])).logits[0][:, columns].contiguous()
    results["text_ids"] = text_ids
    if kind != "interleave":
        results["sizes"] = counted(proc)
    (folder / "expected.json").write_text(json.dumps(results, ensure_ascii=False) + "\n")
    save_file(tensors, folder / "expected.safetensors")
    total = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    said = tok.decode(results["cases"][0]["greedy"])
    print(f"{kind}: {total // 1024} KiB, says {said!r}, lead {results['cases'][0]['lead']:.4f}")


def counted(proc):
    """Token counts of odd sizes."""
    sizes = [(w, h) for w in (1, 7, 28, 33, 57, 200, 640) for h in (1, 6, 28, 41, 56, 97, 333) if min(w, h) * 84 >= max(w, h)]
    counts = proc._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes]).num_image_tokens
    return [[w, h, n] for (w, h), n in zip(sizes, counts)]


def masks(kind, folder, model, tok):
    """200 masks of one prompt with three images."""
    run = Run(kind, model, processor(kind, tok), "three")
    run.answer_ids = tok.encode(base.ANSWER, add_special_tokens=False).ids
    columns = list(range(0, tok.get_vocab_size(), 48)) + [tok.token_to_id(".")]
    generator = torch.Generator().manual_seed(11)
    kept, rates = [], []
    while len(kept) < MASKS:
        rate = qwen.RATES[len(kept) % len(qwen.RATES)]
        keep = run.kept(generator, rate)
        with torch.no_grad():
            _, lead, _ = run.greedy([keep], qwen.GREEDY)
        # A tie would be decided by rounding.
        if lead.min() > 1e-3:
            kept.append(keep)
            rates.append(rate)
    with torch.no_grad():
        ids, lead, first = run.greedy(kept, qwen.GREEDY)
    answers = sorted({tuple(row) for row in ids.tolist()})
    rows = [[rate, qwen.hexed(keep), answers.index(tuple(row))] for rate, keep, row in zip(rates, kept, ids.tolist())]
    results = {"columns": columns, "rows": rows, "answers": answers, "lead": float(lead.min())}
    (folder / "masks.json").write_text(json.dumps(results) + "\n")
    save_file({"first": first[:, columns].contiguous()}, folder / "masks.safetensors")
    print(f"{kind}: {len(answers)} answers, least lead {lead.min():.4f}")


def pixels():
    """Pixels of OneVision's and SigLIP's processors at full size, alone and as one of two, as sums of 8-bit values."""
    rows = []
    for w, h in [(640, 480), (480, 640), (384, 384), (100, 100), (1024, 301), (97, 800), (2000, 1333), (35, 20), (900, 299), (1920, 1920)]:
        for name in ("alone", "several", "siglip"):
            if name == "siglip":
                proc = SiglipImageProcessorPil(size={"height": 384, "width": 384})
                values = proc(base.picture(w, h), return_tensors="np")["pixel_values"]
            else:
                proc = LlavaOnevisionImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
                many = [base.picture(w, h)] * (1 if name == "alone" else 2)
                values = np.asarray(proc([many], return_tensors="np", do_pad=False)["pixel_values"][0])
            values = np.asarray(values, dtype=np.float32)
            levels = (values.astype(np.float64) * 0.5 + 0.5) * 255
            assert np.abs(levels - levels.round()).max() < 1e-3
            flat = values.reshape(-1)
            spots = [[i, float(flat[i])] for i in (int(j * 7919 % flat.size) for j in range(1, 5))]
            rows.append({
                "name": name, "width": w, "height": h, "views": len(values),
                "checksum": str(base.checksum(levels.round().astype(np.uint8))), "spots": spots,
            })
    (OUT / "pixels.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tok = tokenizer()
    for i, kind in enumerate(KINDS):
        if sys.argv[1:] and kind not in sys.argv[1:]:
            continue
        torch.manual_seed(i)
        folder, model = write_model(kind, tok)
        expected(kind, folder, model, tok)
        if kind in COMPLETE:
            masks(kind, folder, model, tok)
    if not sys.argv[1:]:
        pixels()
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()) // 1024, "KiB in all")


if __name__ == "__main__":
    main()

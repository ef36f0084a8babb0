#!/usr/bin/env python3
"""Writes tests/golden/qwen_vl: tiny Qwen2-VL and Qwen2.5-VL checkpoints, and what transformers computes with them.

    python scripts/golden_qwen_vl.py [checkpoint ...]

With names of checkpoints only those are written, with `half` only half.json. Needs torch, torchvision, transformers (made with 5.24), tokenizers and
Pillow (made with 13). `cargo test` reads only what it writes:

NAME/                     config, image settings and weights (bf16); the two of COMPLETE also tokenizer and template
NAME/expected.json        prompts, token counts, positions, greedy answers
NAME/expected.safetensors image features, logits
NAME/masks.*              of the two: 200 random masks, logits of the last row and greedy answers
conversations.json        30 conversations: prompts and ids
half.json                 how far transformers strays from f32 in f16 and bf16, as golden_half.py measures it
sizes.json                60 odd picture sizes: grids, checksums of pixels

Masked tokens are masked keys of all queries (an attention mask with zeros), with explicit positions of three components.
Between them the checkpoints cover both families, the flat and the nested config.json, both generations of tensor names,
grouped heads, one key head, tied and untied outputs, widths of heads, merge sides, windows of several sizes, layers with
and without windows, several images, a vocabulary with rows that no token has.
"""

import json
import math
import pathlib
import sys

import golden_llava as base
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

OUT = pathlib.Path(__file__).parent.parent / "tests/golden/qwen_vl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RATES = [0.0, 0.5, 0.9, 0.99, 1.0]
MASKS, GREEDY = 200, 20
# Two released checkpoints' bounds, and a narrow pair.
BOUNDS = [(3136, 12845056), (3136, 1003520), (50176, 200704)]

# Sizes of everything; `flat` is the config.json of the hub, else that of transformers 5. Widths are small, so that all files
# together are.
KINDS = {
    "qwen2_5": {
        "family": "2.5", "flat": True, "tied": False, "hidden": 32, "inner": 48, "layers": 2, "heads": 4, "kv": 2,
        "section": [1, 1, 2], "patch": 6, "merge": 2, "vision": 24, "vision_heads": 2, "vision_inner": 36, "depth": 3,
        "window": 48, "full": [1], "bounds": (576, 7200), "theta": 1000000.0,
    },
    "qwen2": {
        "family": "2", "flat": False, "tied": True, "hidden": 32, "inner": 48, "layers": 2, "heads": 4, "kv": 1,
        "section": [2, 1, 1], "patch": 6, "merge": 2, "vision": 24, "vision_heads": 3, "ratio": 2, "depth": 2,
        "bounds": (576, 7200), "theta": 1000000.0,
    },
    "qwen2_flat": {
        "family": "2", "flat": True, "tied": True, "hidden": 36, "inner": 40, "layers": 3, "heads": 3, "kv": 3,
        "section": [2, 2, 2], "patch": 4, "merge": 3, "vision": 16, "vision_heads": 1, "ratio": 3, "depth": 1,
        "bounds": (288, 4000), "theta": 10000.0,
    },
    "qwen2_5_nested": {
        "family": "2.5", "flat": False, "tied": True, "hidden": 48, "inner": 40, "layers": 1, "heads": 6, "kv": 2,
        "section": [1, 2, 1], "patch": 4, "merge": 2, "vision": 20, "vision_heads": 1, "vision_inner": 28, "depth": 2,
        "window": 16, "full": [], "bounds": (256, 4000), "theta": 1000000.0,
    },
    "qwen2_5_wide": {
        "family": "2.5", "flat": False, "tied": False, "hidden": 32, "inner": 64, "layers": 2, "heads": 2, "kv": 2,
        "section": [2, 3, 3], "patch": 4, "merge": 2, "vision": 16, "vision_heads": 4, "vision_inner": 24, "depth": 2,
        "window": 40, "full": [0, 1], "bounds": (256, 3000), "theta": 500000.0,
    },
    "qwen2_one": {
        "family": "2", "flat": False, "tied": False, "hidden": 24, "inner": 32, "layers": 2, "heads": 1, "kv": 1,
        "section": [4, 4, 4], "patch": 14, "merge": 2, "vision": 8, "vision_heads": 2, "ratio": 4, "depth": 2,
        "bounds": (3136, 28000), "theta": 1000000.0,
    },
    "qwen2_5_real": {
        # The patches and windows of the released checkpoints.
        "family": "2.5", "flat": True, "tied": False, "hidden": 16, "inner": 24, "layers": 1, "heads": 2, "kv": 1,
        "section": [1, 1, 2], "patch": 14, "merge": 2, "vision": 8, "vision_heads": 1, "vision_inner": 12, "depth": 3,
        "window": 112, "full": [2], "bounds": (3136, 90000), "theta": 1000000.0,
    },
}
COMPLETE = ("qwen2_5", "qwen2")
# Width and height of the pictures of a case, in units of half a merged token.
CASES = {"wide": [(13, 8)], "tall": [(5, 15)], "three": [(6, 6), (9, 5), (4, 7)], "small": [(1, 1)]}
TEMPLATE = """{% set count = namespace(value=0) %}
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}
{% set count.value = count.value + 1 %}
{% if add_vision_id %}Picture {{ count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in content %}{{ content['text'] }}{% endif %}
{% endfor %}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer():
    """A byte-level BPE like Qwen's in small: its normaliser and its splits, special tokens behind all others."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=440, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    text = [" ".join(base.WORDS[i:] + base.WORDS[:i]) for i in range(8)]
    text += ["You are a helpful assistant. system\nuser\nassistant\n The A"] * 4
    tok.train_from_iterator(text, trainer)
    tok.add_special_tokens(SPECIAL)
    return tok


def token(tok, name):
    return tok.token_to_id(name)


def config(kind, tok):
    k = KINDS[kind]
    text = {
        # Rows that no token has, as in the released checkpoints.
        "vocab_size": tok.get_vocab_size() + 5,
        "hidden_size": k["hidden"],
        "intermediate_size": k["inner"],
        "num_hidden_layers": k["layers"],
        "num_attention_heads": k["heads"],
        "num_key_value_heads": k["kv"],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": k["layers"],
        "rope_theta": k["theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": k["section"]},
    }
    vision = {
        "depth": k["depth"],
        "num_heads": k["vision_heads"],
        "in_chans": 3,
        "patch_size": k["patch"],
        "spatial_patch_size": k["patch"],
        "spatial_merge_size": k["merge"],
        "temporal_patch_size": 2,
    }
    if k["family"] == "2":
        vision |= {"embed_dim": k["vision"], "hidden_size": k["hidden"], "mlp_ratio": k["ratio"], "hidden_act": "quick_gelu"}
    else:
        vision |= {
            "hidden_size": k["vision"], "intermediate_size": k["vision_inner"], "out_hidden_size": k["hidden"],
            "window_size": k["window"], "fullatt_block_indexes": k["full"], "tokens_per_second": 2, "hidden_act": "silu",
        }
    kinds = {"2": ("qwen2_vl", "Qwen2VL"), "2.5": ("qwen2_5_vl", "Qwen2_5_VL")}
    model_type, cls = kinds[k["family"]]
    return {
        "architectures": [f"{cls}ForConditionalGeneration"],
        "model_type": model_type,
        "bos_token_id": token(tok, "<|endoftext|>"),
        "eos_token_id": token(tok, "<|im_end|>"),
        "image_token_id": token(tok, "<|image_pad|>"),
        "video_token_id": token(tok, "<|video_pad|>"),
        "vision_start_token_id": token(tok, "<|vision_start|>"),
        "vision_end_token_id": token(tok, "<|vision_end|>"),
        "tie_word_embeddings": k["tied"],
        "vision_config": vision,
    } | text


def image_settings(kind):
    k = KINDS[kind]
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": k["patch"],
        "merge_size": k["merge"],
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    low, high = k["bounds"]
    if k["flat"]:
        return settings | {"min_pixels": low, "max_pixels": high}
    return settings | {"size": {"shortest_edge": low, "longest_edge": high}, "resample": 3, "do_resize": True}


def weights(model, tok):
    """Random weights as golden_llava.py's, which say words only."""
    allowed = base.spoken(tok)[:-1] + [token(tok, "<|im_end|>")]
    named = dict(model.named_parameters())
    for name, p in named.items():
        fan_in = p[0].numel() if p.dim() > 1 else 1
        if "norm" in name or "ln_q" in name:
            p.copy_(1 + 0.1 * torch.randn_like(p)) if name.endswith("weight") else p.normal_(0, 0.1)
        elif name.endswith("bias"):
            p.normal_(0, 0.2)
        elif "q_proj" in name or "k_proj" in name or "attn.qkv" in name:
            p.normal_(0, 1.6 / math.sqrt(fan_in))
        elif "embed_tokens" in name:
            p.normal_(0, 1)
        elif "lm_head" in name:
            p.normal_(0, 0.33)
        elif "language_model" in name and ("o_proj" in name or "down_proj" in name):
            p.normal_(0, 2.0 / math.sqrt(fan_in))
        else:
            p.normal_(0, 1.2 / math.sqrt(fan_in))
    tied = "lm_head.weight" not in named
    for name, p in named.items():
        if ("language_model" in name and ("o_proj" in name or "down_proj" in name)) or "merger.mlp.2" in name:
            p[0] = 0
    embed = named["model.language_model.embed_tokens.weight"]
    if tied:
        embed[:, 0] = 1
        embed[:, 1:] *= 0.4
        embed[allowed, 0] = 6
        return
    embed[:, 0] = 4
    named["model.visual.merger.mlp.2.bias"][0] = 4
    head = named["lm_head.weight"]
    head[:, 0] = -8
    head[allowed, 0] = 0
    head[token(tok, "."), 0] = 1.0
    head[token(tok, "<|im_end|>"), 0] = 0.2


def write_model(kind, tok):
    folder = OUT / kind
    folder.mkdir(parents=True, exist_ok=True)
    k, settings = KINDS[kind], config(kind, tok)
    classes = {
        "2": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        "2.5": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    }
    config_cls, cls = classes[k["family"]]
    model = cls(config_cls(**json.loads(json.dumps(settings)))).eval()
    with torch.no_grad():
        weights(model, tok)
    tensors = {name: p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    if k["flat"]:
        base.dump(folder / "config.json", settings)
        old = lambda n: n.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        tensors = {old(name): p for name, p in tensors.items()}
    else:
        # As transformers 5 writes it, less what is a default of the base class.
        model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base.dump(folder / "preprocessor_config.json", image_settings(kind))
    if kind in COMPLETE:
        tok.save(str(folder / "tokenizer.json"), pretty=False)
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
        settings = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 32768, "add_bos_token": False, "errors": "replace"}
        settings |= names | {"split_special_tokens": False, "clean_up_tokenization_spaces": False}
        if k["flat"]:
            base.dump(folder / "chat_template.json", {"chat_template": TEMPLATE})
            settings["chat_template"] = TEMPLATE
        else:
            (folder / "chat_template.jinja").write_text(TEMPLATE)
        base.dump(folder / "tokenizer_config.json", settings)
        eos = [token(tok, "<|im_end|>"), token(tok, "<|endoftext|>")]
        base.dump(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": eos[1], "do_sample": True})
    model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return folder, model.eval()


def processor(kind, tok):
    settings = image_settings(kind)
    settings.pop("image_processor_type")
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    cls = Qwen2VLProcessor if KINDS[kind]["family"] == "2" else Qwen2_5_VLProcessor
    return cls(Qwen2VLImageProcessorPil(**settings), hf, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)


def sizes_of(kind, case):
    unit = KINDS[kind]["patch"] * KINDS[kind]["merge"] // 2
    return [(w * unit + 1, h * unit + 2) for w, h in CASES[case]]


def conversation(images, answer=None):
    question = [{"type": "image"} for _ in range(images - 1)] + [{"type": "text", "text": "Is the cat near"}, {"type": "image"}]
    question.append({"type": "text", "text": " the old house, or naïve?"})
    turns = [{"role": "user", "content": question}]
    if answer:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


class Run:
    """A prompt with its images, embedded once."""

    def __init__(self, kind, model, proc, case):
        self.kind, self.model = kind, model
        self.sizes = sizes_of(kind, case)
        images = [base.picture(w, h) for w, h in self.sizes]
        open_text = proc.apply_chat_template(conversation(len(images)), add_generation_prompt=True, tokenize=False)
        self.prompt = open_text
        self.text = open_text + base.ANSWER
        inputs = proc(images=images, text=[self.text], return_tensors="pt")
        self.ids = inputs["input_ids"]
        self.grid = inputs["image_grid_thw"]
        self.is_image = self.ids[0] == model.config.image_token_id
        with torch.no_grad():
            positions, _ = model.model.get_rope_index(self.ids, inputs["mm_token_type_ids"], image_grid_thw=self.grid)
            self.positions = positions[:, 0]
            vision = model.model.get_image_features(inputs["pixel_values"], self.grid)
            self.features = torch.cat(vision.pooler_output)
            self.x = model.get_input_embeddings()(self.ids)[0]
            self.x[self.is_image] = self.features
            self.logits = model(**inputs).logits[0]
            again = self.forward(self.x[None], self.positions[:, None], torch.ones_like(self.ids))[0]
        assert model.dtype != torch.float32 or (again - self.logits).abs().max() < 1e-4

    def forward(self, x, positions, mask):
        out = self.model.model.language_model(inputs_embeds=x, position_ids=positions, attention_mask=mask, use_cache=False)
        return self.model.lm_head(out.last_hidden_state)

    def kept(self, generator, rate):
        """A mask: which image tokens stay."""
        return torch.rand(int(self.is_image.sum()), generator=generator) >= rate

    def masked(self, kept, end=None):
        """Rows of the attention mask for these masks, up to a row."""
        mask = torch.ones(len(kept), self.ids.shape[1], dtype=torch.long)
        for row, keep in zip(mask, kept):
            row[self.is_image] = keep.long()
        return mask[:, :end]

    def greedy(self, kept, steps):
        """Greedy answers after the prompt (without the answer), and the least lead of a token that was chosen."""
        end = self.ids.shape[1] - len(self.answer_ids)
        x = self.x[:end].expand(len(kept), -1, -1)
        mask = self.masked(kept, end)
        positions = self.positions[:, None, :end].expand(-1, len(kept), -1)
        out, lead, first = [], [], None
        for _ in range(steps):
            logits = self.forward(x, positions, mask)[:, -1]
            first = logits if first is None else first
            top = logits.topk(2).values
            lead.append(top[:, 0] - top[:, 1])
            ids = logits.argmax(-1)
            out.append(ids)
            x = torch.cat([x, self.model.get_input_embeddings()(ids)[:, None]], 1)
            mask = torch.cat([mask, torch.ones(len(kept), 1, dtype=torch.long)], 1)
            positions = torch.cat([positions, positions.amax((0, 2), keepdim=True).expand(3, -1, 1) + 1], 2)
        return torch.stack(out, 1), torch.stack(lead, 1), first


def hexed(keep):
    """Bits of a mask, the first token first, as digits 0 and 1 packed into hexadecimal."""
    bits = "".join("1" if k else "0" for k in keep.tolist())
    return f"{int(bits[::-1], 2):x}"


def runs(positions):
    """Rows of three numbers, as lists."""
    return positions.T.tolist()


def expected(kind, folder, model, tok):
    proc = processor(kind, tok)
    columns = list(range(0, tok.get_vocab_size(), 24)) + [token(tok, ".")]
    results, tensors = {"columns": columns, "cases": []}, {}
    generator = torch.Generator().manual_seed(7)
    for case in CASES:
        if kind in COMPLETE or case in ("wide", "three"):
            run = Run(kind, model, proc, case)
            run.answer_ids = tok.encode(base.ANSWER, add_special_tokens=False).ids
            with torch.no_grad():
                results["cases"].append({"name": case} | case_of(run, generator, columns, tensors, case))
    text_ids = tok.encode("The dog, near the tree.", add_special_tokens=False).ids
    with torch.no_grad():
        tensors["text.logits"] = model(input_ids=torch.tensor([text_ids])).logits[0][:, columns].contiguous()
    results["text_ids"] = text_ids
    (folder / "expected.json").write_text(json.dumps(results, ensure_ascii=False) + "\n")
    save_file(tensors, folder / "expected.safetensors")
    total = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    said = tok.decode(results["cases"][0]["greedy"])
    print(f"{kind}: {total // 1024} KiB, says {said!r}, lead {results['cases'][0]['lead']:.4f}")


def case_of(run, generator, columns, tensors, case):
    if case in ("wide", "three"):
        tensors[f"{case}.features"] = run.features.contiguous()
    tensors[f"{case}.logits"] = run.logits[:, columns].contiguous()
    tensors[f"{case}.logsumexp"] = run.logits.double().logsumexp(-1).float()
    ids, lead, _ = run.greedy([torch.ones(int(run.is_image.sum()), dtype=torch.bool)], GREEDY)
    out = {
        "sizes": run.sizes, "prompt": run.prompt, "text": run.text, "ids": run.ids[0].tolist(), "grid": run.grid.tolist(),
        "positions": runs(run.positions), "greedy": ids[0].tolist(), "lead": float(lead.min()), "masks": [],
    }
    for rate in RATES if case in ("wide", "three") else []:
        keep = run.kept(generator, rate)
        logits = run.forward(run.x[None], run.positions[:, None], run.masked([keep]))[0]
        seen = run.masked([keep])[0].bool()
        # Every third of the rows that stay, the last one included.
        tensors[f"{case}.masked{rate}.logits"] = logits[seen].flip(0)[::3][:, columns].contiguous()
        out["masks"].append({"rate": rate, "kept": hexed(keep)})
    return out


def masks(kind, folder, model, tok):
    """200 masks of one prompt with two images' worth of tokens."""
    run = Run(kind, model, processor(kind, tok), "three")
    run.answer_ids = tok.encode(base.ANSWER, add_special_tokens=False).ids
    columns = list(range(0, tok.get_vocab_size(), 48)) + [token(tok, ".")]
    generator = torch.Generator().manual_seed(11)
    kept, rates = [], []
    while len(kept) < MASKS:
        rate = RATES[len(kept) % len(RATES)]
        keep = run.kept(generator, rate)
        with torch.no_grad():
            _, lead, _ = run.greedy([keep], GREEDY)
        # A tie would be decided by rounding.
        if lead.min() > 1e-3:
            kept.append(keep)
            rates.append(rate)
    with torch.no_grad():
        ids, lead, first = run.greedy(kept, GREEDY)
    answers = sorted({tuple(row) for row in ids.tolist()})
    rows = [[rate, hexed(keep), answers.index(tuple(row))] for rate, keep, row in zip(rates, kept, ids.tolist())]
    results = {"columns": columns, "rows": rows, "answers": answers, "lead": float(lead.min())}
    (folder / "masks.json").write_text(json.dumps(results) + "\n")
    save_file({"first": first[:, columns].contiguous()}, folder / "masks.safetensors")
    print(f"{kind}: {len(answers)} answers, least lead {lead.min():.4f}")


def conversations(tok):
    """Prompts and ids of 30 conversations, by our placeholder and by transformers' parts."""
    proc = processor("qwen2_5", tok)
    texts = ["What is it?", "Is the cat near the old house?", "Tell me more…", "naïve  text\n\nwith lines", "你好，图片里有什么？", "a\tb  c"]
    rows = []
    for i in range(30):
        turns = []
        if i % 3 == 0:
            turns.append(("system", ["Answer briefly.", "You see pictures.\nBe kind.", ""][i // 3 % 3]))
        images = 0
        for turn in range(1 + i % 3):
            parts, count = [texts[(i + turn) % 6]], (i + turn) % 3
            images += count
            parts = {0: [None] * count + parts, 1: parts + [None] * count, 2: [None] * (count > 0) + parts + [None] * max(count - 1, 0)}[i // 5 % 3]
            turns += [("user", parts), ("assistant", texts[(i + turn + 1) % 6])]
        turns.pop()
        wrap = lambda parts: [{"type": "image"} if p is None else {"type": "text", "text": p} for p in ([parts] if isinstance(parts, str) else parts)]
        hf = [{"role": role, "content": [p for p in wrap(parts) if p.get("text") != ""]} for role, parts in turns]
        text = proc.apply_chat_template(hf, add_generation_prompt=True, tokenize=False)
        ours = [[role, parts if isinstance(parts, str) else "".join("<image>" if p is None else p for p in parts)] for role, parts in turns]
        rows.append({"turns": ours, "images": images, "text": text, "ids": proc.tokenizer(text)["input_ids"]})
    (OUT / "conversations.json").write_text("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n")


def sizes():
    """60 odd shapes under three pairs of bounds; pixels as checksums of the 8-bit values in the tower's order."""
    rng = np.random.default_rng(3)
    shapes = [(1, 1), (1, 200), (200, 1), (13, 14), (14, 42), (28, 28), (56, 56), (57, 55), (27, 29), (41, 42), (640, 480), (1344, 672)]
    while len(shapes) < 60:
        side = int(rng.integers(8, 900))
        ratio = float(np.exp(rng.uniform(-2.5, 2.5)))
        shapes.append((max(1, int(side * ratio**0.5)), max(1, int(side / ratio**0.5))))
    rows = []
    for w, h in shapes:
        row = {"width": w, "height": h, "grids": []}
        for low, high in BOUNDS:
            proc = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)
            count = proc.get_number_of_image_patches(h, w)
            out = proc(base.picture(w, h), return_tensors="np")
            grid = out["image_grid_thw"][0].tolist()
            assert math.prod(grid) == count == len(out["pixel_values"])
            row["grids"].append(grid[1:])
        # Of the last pair, which bounds the work.
        values = out["pixel_values"].astype(np.float32)
        mean, std = (np.repeat(v, 2 * 14 * 14) for v in (proc.image_mean, proc.image_std))
        levels = (values * std + mean) * 255
        assert np.abs(levels - levels.round()).max() < 1e-3
        row["checksum"] = str(base.checksum(levels.round().astype(np.uint8)))
        flat = values.reshape(-1)
        row["spots"] = [[i, float(flat[i])] for i in (int(j * 7919 % flat.size) for j in range(1, 5))]
        rows.append(row)
    text = json.dumps({"bounds": BOUNDS, "rows": rows}).replace('{"width"', '\n{"width"')
    (OUT / "sizes.json").write_text(text + "\n")


def halves(tok):
    """Errors of features and logits, of each checkpoint, dtype and case."""
    out = {}
    for kind in KINDS:
        folder = OUT / kind
        right = load_file(folder / "expected.safetensors")
        columns = json.loads((folder / "expected.json").read_text())["columns"]
        out[kind] = {}
        for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
            runs = {case: Run(kind, model, processor(kind, tok), case) for case in ("wide", "three")}
            pairs = {
                "features": [(run.features, right[f"{case}.features"]) for case, run in runs.items()],
                "logits": [(run.logits[:, columns], right[f"{case}.logits"]) for case, run in runs.items()],
            }
            out[kind][name] = {what: errors(found) for what, found in pairs.items()}
    (OUT / "half.json").write_text(json.dumps(out, indent=1) + "\n")


def errors(pairs):
    """Largest difference over the largest value, and the same of root mean squares."""
    found = torch.cat([f.double().flatten() for f, _ in pairs])
    right = torch.cat([r.double().flatten() for _, r in pairs])
    difference = found - right
    largest = (difference.abs().max() / right.abs().max()).item()
    rms = (difference.square().mean().sqrt() / right.square().mean().sqrt()).item()
    return [float(f"{largest:.4g}"), float(f"{rms:.4g}")]


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
    if sys.argv[1:] in ([], ["half"]):
        halves(tok)
    if not sys.argv[1:]:
        conversations(tok)
        sizes()
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()) // 1024, "KiB in all")


if __name__ == "__main__":
    main()

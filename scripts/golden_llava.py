#!/usr/bin/env python3
"""Writes tests/golden/llava: tiny LLaVA checkpoints with random weights, and what transformers computes with them.

    python scripts/golden_llava.py [output folder [checkpoint ...]]

With names of checkpoints only those are written; next_yi was. Needs torch, transformers (made with 5.23), tokenizers and Pillow. `cargo test` reads only what it writes.

Each folder is a complete checkpoint in the Hugging Face layout (weights stored in f16, computed with in f32), and
`expected/` beside the model files holds results: token ids, vision states, image features, final states and logits.
Between them the five cover: LLaVA-1.5 and NeXT, Llama and Mistral, both generations of tensor names, grouped heads,
a head width that is not hidden/heads, tied and untied outputs, biases, default / linear / llama3 rotary scaling in the
old and the new spelling, templates of all kinds. next_yi is LLaVA-1.6 34B in small: ChatML, its own special tokens, the
image token behind all others, rows of the embedding that no token has, seven query heads a key head. `pixels.json` holds sums of preprocessed images at full size.

So that the models are also good to sample from, one coordinate of the residual stream is a constant that no layer
writes to; through it the output layer forbids all tokens but whole words and punctuation.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/llava")
TILE, PATCH = 28, 7
SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]
YI_SPECIAL = ["<|startoftext|>", "<|im_end|>", "<unk>", "<|im_start|>", "<|endoftext|>"]
BOS, EOS, PAD, IMAGE = range(4)
KINDS = ("llava15", "llava15_odd", "next_vicuna", "next_mistral", "next_yi")
WORDS = (
    "a the and of in on is are with to it no yes this there two man dog cat red blue green white black small large "
    "tree car road sky table cup bird boat house near left right sits stands holds looks wears walks old young happy "
    "water grass street image shows photo person people front behind under hat ball book"
).split()
VIEWS = {
    "wide": (61, 23),
    "tall": (20, 47),
    "square": (40, 40),
    "even": (56, 28),
    "strip": (120, 20),
    "tiny": (5, 4),
}
SIZES = [(w, h) for w in (1, 7, 28, 33, 57, 200, 640) for h in (1, 6, 28, 41, 56, 333, 480)]


def picture(width, height):
    """The test image that tests/models/llava/ draws with the same formula: sharp rings, other ones per channel."""
    x = np.arange(width, dtype=np.int64)[None, :, None]
    y = np.arange(height, dtype=np.int64)[:, None, None]
    c = np.arange(3, dtype=np.int64)[None, None, :]
    value = (3 * x * x + 5 * y * y + (7 + c) * x * y + 640 * c) >> 5
    return Image.fromarray((value & 255).astype(np.uint8))


def tokenizer(kind="llava15"):
    """A byte-level BPE whose merges build the words above, so that any text can be encoded and common words are one token."""
    special = YI_SPECIAL if kind == "next_yi" else SPECIAL
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=472,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(8)]
    text += [". The" * 4 + ", A" * 2 + " ? ! USER: ASSISTANT: [INST] [/INST]"] * 4
    tok.train_from_iterator(text, trainer)
    bos = special[BOS]
    tok.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)]
    )
    if kind == "next_yi":
        tok.add_special_tokens(["<image>"])
    return tok


def spoken(tok):
    """Ids that the models may say: words with their blank, punctuation, end of sequence."""
    ids = [i for w in WORDS if (i := tok.token_to_id("\u0120" + w)) is not None]
    ids += [tok.token_to_id(p) for p in ".,"]
    return ids + [EOS]


def text_config(kind, vocab):
    config = {
        "vocab_size": vocab,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
    }
    config["model_type"] = "mistral" if kind == "next_mistral" else "llama"
    config |= {
        "llava15": {"rope_theta": 10000.0},
        "llava15_odd": {
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "next_vicuna": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "next_mistral": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_window": None,
        },
        "next_yi": {
            "rope_theta": 5000000.0,
            "hidden_size": 28,
            "intermediate_size": 48,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "head_dim": 4,
            # As 64064 rows for 64002 tokens.
            "vocab_size": vocab + 6,
        },
    }[kind]
    return config


def config(kind, vocab):
    out = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": IMAGE,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": text_config(kind, vocab),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": TILE,
            "patch_size": PATCH,
            "projection_dim": 16,
        },
    }
    if kind.startswith("next"):
        out["model_type"] = "llava_next"
        out["architectures"] = ["LlavaNextForConditionalGeneration"]
        out["image_grid_pinpoints"] = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    if kind == "next_yi":
        out["image_token_index"] = vocab - 1
    if kind == "llava15_odd":
        out["tie_word_embeddings"] = True
        out["vision_feature_layer"] = [-2, 1]
        out["vision_feature_select_strategy"] = "full"
        out["projector_hidden_act"] = "gelu_pytorch_tanh"
        out["multimodal_projector_bias"] = False
        out["image_token_id"] = out.pop("image_token_index")
        out["vision_config"]["hidden_act"] = "gelu"
    return out


# Written for these tests, with the features that published templates use.
LIST_TEMPLATE = """{% for message in messages %}
{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}
{# images come first #}
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}
{{ '<image>\\n' }}
{% endfor %}
{% if message['role'] != 'assistant' %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{{ part['text'].strip() + ' ' }}
{% endfor %}
{% else %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{% generation %}{{ part['text'] + eos_token }}{% endgeneration %}
{% endfor %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""
CHATML_TEMPLATE = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' }}
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}
{{ '<image>\n' }}
{% endfor %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{{ part['text'] }}
{% endfor %}
{{ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
STRING_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def processor_config(kind):
    out = {
        "size": {"shortest_edge": TILE},
        "crop_size": {"height": TILE, "width": TILE},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    if kind.startswith("next"):
        out["image_processor_type"] = "LlavaNextImageProcessor"
        out["image_grid_pinpoints"] = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    elif kind == "llava15_odd":
        out["image_processor_type"] = "LlavaImageProcessor"
        out["do_pad"] = True
    else:
        out["image_processor_type"] = "CLIPImageProcessor"
        del out["rescale_factor"]
    return out


PROCESSORS = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "LlavaNextImageProcessor": LlavaNextImageProcessorPil,
}


def weights(model, tok):
    """Random weights whose states have size about 1 everywhere, and whose attention is neither flat nor one-hot."""
    allowed = spoken(tok)
    for name, p in model.named_parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 1
        if "norm" in name or "layrnorm" in name:
            p.copy_(1 + 0.1 * torch.randn_like(p)) if name.endswith("weight") else p.normal_(0, 0.1)
        elif name.endswith("bias"):
            p.normal_(0, 0.2)
        elif "q_proj" in name or "k_proj" in name:
            p.normal_(0, 1.6 / math.sqrt(fan_in))
        elif "embed_tokens" in name or "class_embedding" in name or "newline" in name:
            p.normal_(0, 1)
        elif "position_embedding" in name:
            p.normal_(0, 0.5)
        elif "lm_head" in name:
            p.normal_(0, 0.33)
        elif "language_model" in name and ("o_proj" in name or "down_proj" in name):
            p.normal_(0, 1.0 / math.sqrt(fan_in))
        else:
            p.normal_(0, 1.2 / math.sqrt(fan_in))
    # Coordinate 0 of the residual stream is constant...
    named = dict(model.named_parameters())
    tied = "lm_head.weight" not in named
    for name, p in named.items():
        if ("language_model" in name and ("o_proj" in name or "down_proj" in name)) or "linear_2" in name:
            p[0] = 0
    embed = named["model.language_model.embed_tokens.weight"]
    if tied:
        # ... or, where the output layer is the embedding, larger for what may be said.
        embed[:, 0] = 1
        embed[:, 1:] *= 0.4
        embed[allowed, 0] = 4
        return
    embed[:, 0] = 4
    named["model.multi_modal_projector.linear_2.bias"][0] = 4
    if "model.image_newline" in named:
        named["model.image_newline"][0] = 4
    head = named["lm_head.weight"]
    head[:, 0] = -8
    head[allowed, 0] = 0
    head[tok.token_to_id("."), 0] = 1.0
    head[EOS, 0] = 0.2


def old_names(name):
    """Tensor names as they were before transformers 4.52."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("lm_head"):
        return "language_model." + name
    return name.replace("language_model.", "language_model.model.", 1)


def token_names(kind):
    special = YI_SPECIAL if kind == "next_yi" else SPECIAL
    return {"bos_token": special[BOS], "eos_token": special[EOS], "pad_token": special[PAD]}


def write_model(kind, tok):
    folder = OUT / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "expected").mkdir(exist_ok=True)
    dump(folder / "config.json", config(kind, tok.get_vocab_size()))
    dump(folder / "preprocessor_config.json", processor_config(kind))
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, "clean_up_tokenization_spaces": False}
    names = token_names(kind)
    settings |= names | {"pad_token": {"content": names["pad_token"], "__type": "AddedToken"}}
    if kind == "llava15":
        dump(folder / "chat_template.json", {"chat_template": LIST_TEMPLATE})
        dump(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD})
    elif kind == "next_vicuna":
        (folder / "chat_template.jinja").write_text(LIST_TEMPLATE)
        dump(folder / "generation_config.json", {"eos_token_id": [EOS, PAD]})
    elif kind == "next_mistral":
        settings["chat_template"] = STRING_TEMPLATE
    elif kind == "next_yi":
        dump(folder / "chat_template.json", {"chat_template": CHATML_TEMPLATE})
    dump(folder / "tokenizer_config.json", settings)

    cls = LlavaNextForConditionalGeneration if kind.startswith("next") else LlavaForConditionalGeneration
    model = cls(cls.config_class(**config(kind, tok.get_vocab_size()))).eval()
    with torch.no_grad():
        weights(model, tok)
    tensors = {n: p.detach().half().contiguous() for n, p in model.named_parameters()}
    if kind in ("llava15", "next_mistral"):
        tensors = {old_names(n): p for n, p in tensors.items()}
    elif kind == "llava15_odd":
        tensors = {n.replace("vision_tower.", "vision_tower.vision_model."): p for n, p in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # Reading it back proves that the folder is a checkpoint transformers understands.
    model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return folder, model.eval()


def dump(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def processor(kind, folder, tok):
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    images = PROCESSORS[settings.pop("image_processor_type")](**settings)
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, **token_names(kind))
    cls = LlavaNextProcessor if kind.startswith("next") else LlavaProcessor
    strategy = config(kind, 1)["vision_feature_select_strategy"]
    templates = {"next_mistral": STRING_TEMPLATE, "llava15_odd": None, "next_yi": CHATML_TEMPLATE}
    template = templates.get(kind, LIST_TEMPLATE)
    return cls(
        images,
        hf,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=template,
    )


def conversation(kind, answer):
    """The conversation of tests/models/llava/ as a template takes it."""
    question, reply = "Is the cat near the old house, or naïve?", "Yes, the cat sits there."
    if kind == "next_mistral":
        user, assistant = "<image>\n" + question, reply
        follow = "How many?"
        wrap = lambda text: text
    else:
        user = [{"type": "image"}, {"type": "text", "text": question}]
        wrap = lambda text: [{"type": "text", "text": text}]
        assistant, follow = wrap(reply), wrap("How many?")
    turns = [("user", user), ("assistant", assistant), ("user", follow)]
    if answer:
        turns.append(("assistant", wrap(answer)))
    return [{"role": r, "content": c} for r, c in turns]


ANSWER = "There are 2 dogs. It is 3.5 m away…"


def expected(kind, folder, model, tok):
    proc = processor(kind, folder, tok)
    vision = {}
    results = {"sizes": [], "cases": []}
    tensors = {}
    counted = [s for s in SIZES if min(s) * 84 >= max(s)]
    counts = proc._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in counted]).num_image_tokens
    results["sizes"] = [[w, h, n] for (w, h), n in zip(counted, counts)]
    if kind == "llava15_odd":
        prompt = "USER: <image>\nIs the cat near the old house, or naïve? ASSISTANT:"
        full = prompt + " " + ANSWER
    else:
        prompt = proc.apply_chat_template(conversation(kind, None), add_generation_prompt=True)
        full = proc.apply_chat_template(conversation(kind, ANSWER), add_generation_prompt=False)
        full = full[: full.index(ANSWER) + len(ANSWER)]
    results["prompt"], results["full"] = prompt, full
    # Generated text is never put in front of a second BOS.
    special = not full.startswith("<s>")
    columns = list(range(0, tok.get_vocab_size(), 32)) + [tok.token_to_id(".")]
    results["columns"] = columns
    for name, (w, h) in VIEWS.items():
        if kind in ("next_vicuna", "next_mistral") or name in ("wide", "tall", "tiny"):
            case = run(proc, model, full, picture(w, h), special, columns, tensors, name)
            results["cases"].append({"name": name, "width": w, "height": h} | case)
    results["text_ids"] = proc.tokenizer("The dog, near the tree.", add_special_tokens=True)["input_ids"]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([results["text_ids"]]))
    tensors["text.logits"] = out.logits[0].float().contiguous()
    # Far apart and far out, where a rotary table that is not f32 throughout goes wrong.
    results["far"] = [0, 3, 257, 700, 1500, 1501, 1900, 2040][: len(results["text_ids"])]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([results["text_ids"]]), position_ids=torch.tensor([results["far"]]))
    tensors["far.logits"] = out.logits[0].float().contiguous()
    results["sample"] = sample(model, proc, prompt, special)
    (folder / "expected" / "results.json").write_text(json.dumps(results, ensure_ascii=False) + "\n")
    save_file(tensors, folder / "expected" / "results.safetensors")
    std = tensors["text.logits"].std(-1).mean()
    total = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{kind}: {total // 1024} KiB, logit std {std:.2f}, says {results['sample'][:100]!r}")


def run(proc, model, full, image, special, columns, tensors, name):
    inputs = proc(images=[image], text=[full], return_tensors="pt", add_special_tokens=special)
    extra = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        pixels = inputs["pixel_values"].flatten(0, -4)
        config = model.config
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        chosen = torch.cat([states[i] for i in layers], -1)
        if config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        features = model.get_image_features(inputs["pixel_values"], **extra).pooler_output[0]
    logits = out.logits[0].double()
    std, mean = np.array(proc.image_processor.image_std), np.array(proc.image_processor.image_mean)
    levels = (pixels.double().numpy() * std[:, None, None] + mean[:, None, None]) * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    if name in ("wide", "tall"):
        tensors[f"{name}.tiles"] = torch.tensor(levels.round().astype(np.uint8))
        tensors[f"{name}.vision"] = chosen.contiguous()
        tensors[f"{name}.features"] = features.contiguous()
    tensors[f"{name}.logits"] = logits[:, columns].float().contiguous()
    tensors[f"{name}.logsumexp"] = logits.logsumexp(-1).float()
    ids = inputs["input_ids"][0].tolist()
    image = proc.tokenizer.convert_tokens_to_ids("<image>")
    first, count = ids.index(image), ids.count(image)
    return {"before": ids[:first], "image": count, "after": ids[first + count :]}


def sample(model, proc, prompt, special):
    """One sampled answer, to see that the model is lively."""
    image = picture(*VIEWS["wide"])
    inputs = proc(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=special)
    torch.manual_seed(1)
    out = model.generate(**inputs, do_sample=True, max_new_tokens=40, eos_token_id=EOS, pad_token_id=PAD)
    return proc.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


def checksum(tiles):
    """Position-weighted sum of 8-bit values, modulo 2^64; tests/models/llava/ has the same."""
    flat = tiles.reshape(-1).astype(np.uint64)
    weight = (np.arange(flat.size, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(12345)) & np.uint64(0xFFFFFFFF)
    return int((flat * weight).sum(dtype=np.uint64))


def pixels():
    """Checksums of images preprocessed with the settings of the released checkpoints, and other resampling filters."""
    clip = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    nxt = clip | {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}
    cases = []
    sizes = [(640, 480), (480, 640), (336, 336), (337, 335), (100, 100), (1024, 301), (97, 800), (2000, 1333),
             (500, 375), (672, 672), (35, 20), (1, 9), (900, 299), (333, 1001)]
    for w, h in sizes:
        for name, cls, settings in (
            ("clip", CLIPImageProcessorPil, clip),
            ("llava", LlavaImageProcessorPil, clip | {"do_pad": True}),
            ("next", LlavaNextImageProcessorPil, nxt),
        ):
            cases.append(pixel_case(name, cls, settings, w, h))
    for resample in (1, 2, 4, 5):
        cases.append(pixel_case("clip", CLIPImageProcessorPil, clip | {"resample": resample}, 500, 375))
        cases.append(pixel_case("clip", CLIPImageProcessorPil, clip | {"resample": resample}, 120, 90))
        cases.append(pixel_case("next", LlavaNextImageProcessorPil, nxt | {"resample": resample}, 300, 900))
    # Smaller than the crop: centred on black. And without normalisation, to an exact size.
    small = {"size": {"shortest_edge": 101}, "crop_size": {"height": 336, "width": 336}}
    cases += [pixel_case("clip", CLIPImageProcessorPil, small, w, h) for w, h in ((300, 200), (200, 300), (999, 100))]
    exact = {"size": {"height": 336, "width": 336}, "do_center_crop": False, "do_normalize": False}
    cases.append(pixel_case("clip", CLIPImageProcessorPil, exact, 300, 200))
    (OUT / "pixels.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


def pixel_case(name, cls, settings, w, h):
    proc = cls(**settings)
    values = np.asarray(proc(picture(w, h), return_tensors="np")["pixel_values"][0], dtype=np.float32)
    std, mean = np.array(proc.image_std), np.array(proc.image_mean)
    levels = values.astype(np.float64) * 255
    if proc.do_normalize:
        levels = (values * std[:, None, None] + mean[:, None, None]) * 255
    assert np.abs(levels - levels.round()).max() < 1e-3
    flat = values.reshape(-1)
    spots = [int(i * 7919 % flat.size) for i in range(1, 9)]
    tiles = 1 if values.ndim == 3 else values.shape[0]
    return {
        "processor": name, "settings": settings, "width": w, "height": h, "tiles": tiles,
        "checksum": str(checksum(levels.round().astype(np.uint8))), "spots": [[i, float(flat[i])] for i in spots],
    }


def main():
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    for kind in sys.argv[2:] or KINDS:
        tok = tokenizer(kind)
        folder, model = write_model(kind, tok)
        expected(kind, folder, model, tok)
    if not sys.argv[2:]:
        pixels()


if __name__ == "__main__":
    main()

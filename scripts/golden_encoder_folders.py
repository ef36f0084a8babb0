#!/usr/bin/env python3
"""Writes tests/golden/encoders/folders.json: folders of encoders as people have them, and sentence-transformers' vectors.

    python scripts/golden_encoder_folders.py [--golden tests/golden/encoders]

Needs torch, transformers, sentence-transformers, safetensors. Each variant is a golden encoder with some edits, which
the test makes as well (tests/models/encoder/folders.rs):

    write    path -> JSON that replaces the file (null removes it)
    rename   [[pattern, replacement], ...] on the names of the network's tensors; a replacement of null drops them
    tensors  path -> {name: values}, a new safetensors file
    vocab    true: tokenizer.json becomes vocab.txt, a token a line
"""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

TEXTS = [
    "A man in a RED jacket stands beside a table.",
    "Café au lait, s'il vous plaît!",
    "",
    "The 漢字 on the sign 看板 are blue",
    " ".join(["A small brown dog near the window of Number", "and a cup of coffee stays."] * 12),
]


def variants(golden):
    bert = golden / "bert"
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    config = json.loads((bert / "config.json").read_text())
    limits = {"max_seq_length": 40, "do_lower_case": False}
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}

    def rules(cls, **settings):
        return {"tokenizer_class": cls, **marks, **settings}

    def normalizer(**settings):
        changed = json.loads(json.dumps(tokenizer))
        changed["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                                 "strip_accents": None, "lowercase": True, **settings}
        return changed

    def folder(**files):
        names = {"tokenizer_config": "tokenizer_config.json", "tokenizer": "tokenizer.json", "limits": "sentence_bert_config.json",
                 "modules": "modules.json", "config": "config.json"}
        return {names.get(name, name): value for name, value in {"limits": limits, **files}.items()}

    kinds = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": kinds + "Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": kinds + "Pooling"}]
    more = [{"idx": 2, "name": "2", "path": "2_LayerNorm", "type": kinds + "LayerNorm"},
            {"idx": 3, "name": "3", "path": "3_Dropout", "type": kinds + "Dropout"}]
    distil = {"model_type": "distilbert", "vocab_size": config["vocab_size"], "dim": 32, "n_layers": 2, "n_heads": 4,
              "hidden_dim": 64, "activation": "gelu", "max_position_embeddings": 128, "pad_token_id": 0}
    names = [[r"encoder\.layer\.", "transformer.layer."], [r"attention\.self\.query", "attention.q_lin"],
             [r"attention\.self\.key", "attention.k_lin"], [r"attention\.self\.value", "attention.v_lin"],
             [r"attention\.output\.dense", "attention.out_lin"], [r"attention\.output\.LayerNorm", "sa_layer_norm"],
             [r"intermediate\.dense", "ffn.lin1"], [r"(\d)\.output\.dense", "$1.ffn.lin2"],
             [r"(\d)\.output\.LayerNorm", "$1.output_layer_norm"], [r"token_type", None], [r"^bert\.", "distilbert."]]
    norm = {"norm.weight": [0.5 + 0.03 * i for i in range(32)], "norm.bias": [0.1 - 0.01 * i for i in range(32)]}
    roberta = json.loads((golden / "roberta" / "config.json").read_text())
    plain = rules("PreTrainedTokenizerFast", model_max_length=512)
    return {
        "older_norm_names": ("bert", {"write": folder(), "rename": [[r"LayerNorm\.weight", "LayerNorm.gamma"],
                                                                     [r"LayerNorm\.bias", "LayerNorm.beta"]]}),
        "no_modules": ("bert", {"write": folder(modules=None)}),
        "cut_at_the_left": ("bert", {"write": folder(tokenizer_config={**plain, "truncation_side": "left"})}),
        "lower_by_config": ("bert", {"write": folder(tokenizer=normalizer(lowercase=False),
                                                     tokenizer_config=rules("BertTokenizer", do_lower_case=True))}),
        "cased_by_config": ("bert", {"write": folder(tokenizer=normalizer(),
                                                     tokenizer_config=rules("BertTokenizerFast", do_lower_case=False))}),
        "accents_by_config": ("bert", {"write": folder(tokenizer=normalizer(), tokenizer_config=rules(
            "BertTokenizer", do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False))}),
        "lower_by_default": ("bert", {"write": folder(tokenizer=normalizer(lowercase=False), tokenizer_config=rules("BertTokenizer"))}),
        "config_says_nothing": ("bert", {"write": folder(tokenizer=normalizer(lowercase=False),
                                                         tokenizer_config=rules("PreTrainedTokenizerFast"))}),
        "vocabulary": ("bert", {"write": folder(tokenizer_config=rules("BertTokenizer", do_lower_case=True)), "vocab": True}),
        "layer_norm_and_dropout": ("bert", {"write": folder(modules=modules + more, **{"2_LayerNorm/config.json": {"dimension": 32},
                                                                                     "3_Dropout/config.json": {"dropout": 0.1}}),
                                            "tensors": {"2_LayerNorm/model.safetensors": norm}}),
        "distilbert": ("bert", {"write": folder(config=distil), "rename": names}),
        "camembert": ("roberta", {"write": {"config.json": {**roberta, "model_type": "camembert"}}}),
    }


def make(source, edits, target):
    shutil.copytree(source, target)
    if edits.get("vocab"):
        vocab = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
        (target / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)))
        (target / "tokenizer.json").unlink()
    for path, value in edits.get("write", {}).items():
        if value is None:
            (target / path).unlink()
            continue
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_text(json.dumps(value))
    if edits.get("rename"):
        tensors = load_file(target / "model.safetensors")
        renamed = {}
        for name, tensor in tensors.items():
            for pattern, replacement in edits["rename"]:
                if replacement is None:
                    name = None if re.search(pattern, name) else name
                else:
                    name = re.sub(pattern, replacement.replace("$1", r"\1"), name)
                if name is None:
                    break
            if name is not None:
                renamed[name] = tensor.contiguous().clone()
        save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    for path, tensors in edits.get("tensors", {}).items():
        save_file({name: torch.tensor(values) for name, values in tensors.items()}, target / path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", type=Path, default=Path(__file__).parent.parent / "tests/golden/encoders")
    golden = parser.parse_args().golden
    found = []
    for name, (source, edits) in variants(golden).items():
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / name
            make(golden / source, edits, target)
            model = SentenceTransformer(str(target), device="cpu")
            vectors = model.encode(TEXTS, batch_size=1).tolist()
        found.append({"name": name, "source": source, **edits, "vectors": [[round(x, 8) for x in v] for v in vectors]})
        print(name, len(vectors[0]), model.max_seq_length)
    text = json.dumps({"texts": TEXTS, "variants": found}, ensure_ascii=False, separators=(",", ":"))
    (golden / "folders.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

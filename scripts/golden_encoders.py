#!/usr/bin/env python3
"""Writes tests/golden/encoders: four tiny random sentence encoders and what sentence-transformers computes with them.

    python scripts/golden_encoders.py [--output tests/golden/encoders]

Needs torch, transformers, sentence-transformers, tokenizers, safetensors. Each folder <arch>/ is a complete
sentence-transformers model of hidden size 32 with two layers; <arch>.expected.json beside it holds texts, token counts
before truncation, and vectors. Between them the four cover: old and new file styles, tensor name prefixes, lower
casing, a default prompt, mean, cls and concatenated pooling, Dense with and without bias, with and without Normalize.
The tokenizers are trained on the paragraphs below and fall back to characters or bytes, so any English text works.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (BertConfig, BertModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel,
                          XLMRobertaConfig, XLMRobertaModel)

PARAGRAPHS = """
A man in a red jacket stands beside a wooden table and looks at the camera. Behind him, two children are playing with a
small brown dog near the window. There is a cup of coffee, a plate with three slices of bread and an open book on the table.
The image shows a busy street in the middle of a large city. Several people are walking along the pavement, some of them
carrying bags and umbrellas, while a yellow bus and a few cars wait at the traffic light. Tall buildings rise on both sides.
In the background, a white boat is sailing on the blue water under a cloudy sky. The beach is almost empty, except for a
woman who is holding a surfboard and a bird that sits on the sand. The light suggests that it is early in the morning.
Yes, there is a cat in the picture. It is lying on the couch next to a television, and it seems to be asleep. No, the
person is not wearing a hat. The kitchen has a refrigerator, a sink, an oven and a clock which hangs on the wall.
A group of young players on a green field are chasing a ball during a game of soccer; their shirts are black and white.
The train has stopped at the station, and passengers with suitcases are about to board. A sign above the platform reads
the time of departure. What is unusual about this scene is the giraffe that stands quietly between the trees and the fence.
""".strip()

ALPHABET = [chr(c) for c in range(32, 127)]
PROMPT = "caption: "

TEXTS = [
    "",
    "a",
    " ",
    "A man in a red jacket stands beside a wooden table.",
    "a man in a RED jacket stands beside a wooden table",
    "A man in a blue jacket stands beside a wooden table.",
    "Two dogs are sleeping on the couch next to the television.",
    "There is a cat in the picture.",
    "There is no cat in the picture.",
    "Yes, the image shows a giraffe. It stands quietly between the trees; the fence is white.",
    "The time is 3.5 hours, e.g. 12:30... and it costs $4,000!",
    "tabs\tand\ttabs\t",
    "  leading and trailing blanks  ",
    "line one\nline two\r\n\nline four\n",
    "emoji \U0001f600 and \U0001f469\u200d\U0001f680, caf\u00e9, na\u00efve, \u00dcber, cafe\u0301",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u65e5\u672c\u8a9e\u306e\u6587\u3067\u3059\u3002 \u4e2d\u6587",
    "[CLS] <s> [SEP] </s> <pad> [PAD] <mask>",
    "Supercalifragilisticexpialidocious" * 5,
    " ".join(f"word{i}" if i % 7 == 0 else PARAGRAPHS.split()[i % 200] for i in range(600)),
    "!",
    "The train has stopped at the station, and passengers with suitcases are about to board. " * 4,
]


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(PARAGRAPHS.splitlines(), trainer)
    return tokenizer


def template(tokenizer, begin, end):
    pairs = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} {end} $B {end}", special_tokens=pairs)


def word_piece(special, unknown, begin, end, size, lower):
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    train(tokenizer, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False,
        # A character needs both forms, at the start and inside of a word.
        initial_alphabet=ALPHABET))
    vocabulary = tokenizer.get_vocab()
    for character in ALPHABET[1:]:
        for form in (character, "##" + character):
            vocabulary.setdefault(form, len(vocabulary))
    tokenizer.model = models.WordPiece(vocabulary, unk_token=unknown)
    template(tokenizer, begin, end)
    return tokenizer


def byte_bpe(size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram(size):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    train(tokenizer, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=ALPHABET))
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    lowest = min(score for _, score in pieces) - 1.0
    known = {piece for piece, _ in pieces}
    pieces += [[c, lowest] for c in ALPHABET[1:] + ["\u2581"] if c not in known]
    tokenizer.model = models.Unigram([tuple(p) for p in pieces], unk_id=3)
    tokenizer.add_special_tokens(["<mask>"])
    template(tokenizer, "<s>", "</s>")
    return tokenizer


def randomise(model, seed):
    """Weights with effect: large embeddings and attention that is far from uniform; layer norms that are not 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "LayerNorm.weight" in name:
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        elif "word_embeddings" in name:
            value = noise
        elif "position" in name or "token_type" in name:
            value = 0.15 * noise
        elif "relative_attention_bias" in name:
            value = noise
        else:
            value = 1.4 * noise / parameter.shape[-1] ** 0.5
        with torch.no_grad():
            parameter.copy_(value)
    return model.eval()


def sizes(tokenizer, positions):
    return dict(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=64, max_position_embeddings=positions)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_model(folder, model, tokenizer, prefix=""):
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    tensors = {prefix + name: t.contiguous() for name, t in model.state_dict().items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    # The file is taken as it is, whatever the architecture's own tokenizer class would do.
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>")
    if tokenizer.token_to_id("<s>") is None:
        names = dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
    write_json(folder / "tokenizer_config.json",
               {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names})


def write_modules(folder, modules, kind="sentence_transformers.models."):
    entries = []
    for i, (name, config) in enumerate(modules):
        path = "" if i == 0 else f"{i}_{name}"
        entries.append({"idx": i, "name": str(i), "path": path, "type": kind + name})
        if config is not None:
            write_json(folder / path / "config.json", config)
    write_json(folder / "modules.json", entries)


def pooling(*flags):
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]
    return {"word_embedding_dimension": 32, **{f"pooling_mode_{n}": n in flags for n in names}}


def write_dense(folder, inputs, outputs, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    tensors = {"linear.weight": torch.randn(outputs, inputs, generator=generator) / inputs ** 0.5}
    if bias:
        tensors["linear.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    save_file(tensors, folder / "model.safetensors")


def bert(folder):
    tokenizer = word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[UNK]", "[CLS]", "[SEP]", 420, lower=False)
    # As published files do: the limits in here are the trainer's, and not to be used.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    model = randomise(BertModel(BertConfig(**sizes(tokenizer, 128), pad_token_id=0)), 1)
    write_model(folder, model, tokenizer)
    write_modules(folder, [("Transformer", None), ("Pooling", pooling("mean_tokens")), ("Normalize", None)])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 96, "do_lower_case": True})


def mpnet(folder):
    special = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
    tokenizer = word_piece(special, "[UNK]", "<s>", "</s>", 420, lower=True)
    model = randomise(MPNetModel(MPNetConfig(**sizes(tokenizer, 260))), 2)
    write_model(folder, model, tokenizer, prefix="mpnet.")
    write_modules(folder, [("Transformer", None), ("Pooling", pooling("max_tokens", "mean_sqrt_len_tokens")),
                           ("Normalize", None)])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 250, "do_lower_case": False})


def roberta(folder):
    tokenizer = byte_bpe(480)
    model = randomise(RobertaModel(RobertaConfig(
        **sizes(tokenizer, 140), type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)), 3)
    write_model(folder, model, tokenizer, prefix="roberta.")
    dense = {"in_features": 32, "out_features": 24, "bias": True,
             "activation_function": "torch.nn.modules.activation.Tanh"}
    write_modules(folder, [("Transformer", None), ("Pooling", pooling("cls_token")), ("Dense", dense),
                           ("Normalize", None)])
    write_dense(folder / "2_Dense", 32, 24, True, 5)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 130, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": {"caption": PROMPT}, "default_prompt_name": "caption"})


def xlm_roberta(folder):
    """New style throughout, and no Normalize: vectors of any length."""
    tokenizer = unigram(360)
    model = randomise(XLMRobertaModel(XLMRobertaConfig(
        **sizes(tokenizer, 130), type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1)), 4)
    write_model(folder, model, tokenizer)
    dense = {"in_features": 96, "out_features": 32, "bias": False, "module_input_name": "sentence_embedding",
             "module_output_name": "sentence_embedding",
             "activation_function": "torch.nn.modules.linear.Identity"}
    modes = {"embedding_dimension": 32, "pooling_mode": ["mean", "lasttoken", "weightedmean"], "include_prompt": True}
    write_modules(folder, [("Transformer", None), ("Pooling", modes), ("Dense", dense)],
                  kind="sentence_transformers.sentence_transformer.modules.")
    write_dense(folder / "2_Dense", 96, 32, False, 6)
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "model_max_length": 120})
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": {"query": "", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def expected(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(TEXTS, batch_size=4, convert_to_numpy=True)
    prompt = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
    tokenizer = model[0].tokenizer
    tokens = [len(tokenizer(prompt + text, truncation=False)["input_ids"]) for text in TEXTS]
    write_json(folder.parent / f"{folder.name}.expected.json", {
        "max_tokens": model.max_seq_length,
        "texts": TEXTS,
        "tokens": tokens,
        "vectors": [[float(f"{x:.9g}") for x in row] for row in vectors],
    })
    unit = torch.nn.functional.normalize(torch.tensor(vectors), dim=1)
    cosines = (unit @ unit.T)[*torch.triu_indices(len(TEXTS), len(TEXTS), 1)]
    near = unit @ unit.T
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder.name}: {size / 1024:.0f} KiB, limit {model.max_seq_length}, cosines "
          + " ".join(f"{q:.3f}" for q in torch.quantile(cosines, torch.tensor([0., .1, .25, .5, .75, .9, 1.])))
          + f"; jacket/coat {near[3, 5]:.4f}, cat/no cat {near[7, 8]:.4f}, jacket/dogs {near[3, 6]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "tests/golden/encoders")
    output = parser.parse_args().output
    for build in (bert, mpnet, roberta, xlm_roberta):
        folder = output / build.__name__
        if folder.exists():
            shutil.rmtree(folder)
        build(folder)
        expected(folder)


if __name__ == "__main__":
    main()

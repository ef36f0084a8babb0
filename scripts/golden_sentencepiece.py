#!/usr/bin/env python3
"""Writes tests/golden/sentencepiece: a small SentencePiece model with the settings of Llama's, and what others make of texts.

    python scripts/golden_sentencepiece.py

Needs sentencepiece, transformers, protobuf and tokenizers (made with 0.2.3, 5.17, 7.36, 0.23). `expected.json` holds ids of every
text under the two rules for the blank that words begin with:

- `segments`: those of the sentencepiece package, which is what the original LLaVA code runs, of every part between special tokens;
- `start`: those of transformers' LlamaTokenizerFast, made from the same folder, with `legacy=False`.

That with `legacy=True` must equal the first wherever no part begins with a blank: there it leaves one out.
`prompts` are texts with images as the original LLaVA code tokenises them: cut at every <image>, each part by itself.
"""

import json
import pathlib
import re
import sys

import sentencepiece
from transformers import LlamaTokenizerFast

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/sentencepiece")
PIECES = 420
CORPUS = [
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful answers.",
    "The image shows a cat near an old house. The cat is sitting on a red table, and the dog is lying under it.",
    "Is there a dog in the image? Yes, there are 2 dogs in the image, and a man is walking them along the road.",
    "USER: What is this? ASSISTANT: This is a banana, bananas are yellow. [INST] What is it? [/INST] It is an aba.",
    "There is no tree in this photo; the street is empty. People are standing there, looking at the water. 3.5 m.",
] * 4 + ["abababa banana ananas nanana aaaa eeee tttt  two  blanks   three"] * 3
TEXTS = [
    "",
    "a",
    " ",
    "  ",
    "The cat is near the old house.",
    " The cat, with a blank before it",
    "two  blanks,   three, and one behind ",
    "line\nbreak\n\ttab\r\n",
    "ban banana bananas abababababa aaaaaaa ananananas",
    "1234567890 3.14159 2,000",
    "naïve café … — “quoted” №",
    "北京 🦝 ﬁ ｆｕｌｌ",
    "\u2581mark \u2581\u2581 marks",
    "Zq XyZ QQQ",
    "a" * 70,
]
SPECIAL = [
    "USER: What? ASSISTANT: This.</s>USER: And that? ASSISTANT:",
    "</s> The cat</s></s>  a <s>the",
    "<unk> unknown <|mark|>marked<|mark|> it<pad> <extra>the",
    "<s>The cat",
]
PROMPTS = [
    "A chat. USER: <image>\nWhat is this? ASSISTANT:",
    "[INST] <image>\nWhat is it? [/INST] It is a cat. </s>[INST] <image> And this? [/INST]",
    "<image>",
    "<image><image> two",
    "none",
]


def train():
    OUT.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(OUT / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|mark|>"],
        num_threads=1,
        minloglevel=2,
    )
    (OUT / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
                      "single_word": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    dump("tokenizer_config.json", settings)
    dump("special_tokens_map.json", {"pad_token": "<pad>"})
    dump("added_tokens.json", {"<extra>": PIECES + 1, "<pad>": PIECES})


def dump(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def segments(sp, text):
    """Ids of a text whose special tokens stand between parts of their own."""
    added = {sp.id_to_piece(i): i for i in (sp.unk_id(), sp.bos_id(), sp.eos_id(), sp.piece_to_id("<|mark|>"))}
    added |= json.loads((OUT / "added_tokens.json").read_text())
    ids = [sp.bos_id()]
    for part in re.split("(" + "|".join(map(re.escape, added)) + ")", text):
        ids += [added[part]] if part in added else sp.encode(part)
    return ids


def main():
    train()
    sp = sentencepiece.SentencePieceProcessor(str(OUT / "tokenizer.model"))
    fast = {legacy: LlamaTokenizerFast.from_pretrained(OUT, legacy=legacy) for legacy in (True, False)}
    both = lambda text: {"segments": segments(sp, text), "start": fast[False](text).input_ids}
    rows = []
    for text in TEXTS + SPECIAL:
        row = {"text": text} | both(text)
        row["decoded"] = fast[False].decode(row["start"], skip_special_tokens=True)
        if not re.search("(^|>)[ \u2581]", text):
            assert fast[True](text).input_ids == row["segments"], text
        rows.append(row)
    prompts = []
    for prompt in PROMPTS:
        parts = [both(part) for part in prompt.split("<image>")]
        # The start token of the first part alone stays.
        first, rest = parts[0], parts[1:]
        prompts.append({"text": prompt} | {rule: [first[rule]] + [part[rule][1:] for part in rest] for rule in first})
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
    (OUT / "expected.json").write_text('{"texts": ' + lines(rows) + ',\n"prompts": ' + lines(prompts) + "}\n")
    size = sum(f.stat().st_size for f in OUT.iterdir())
    differ = sum(row["segments"] != row["start"] for row in rows)
    print(f"{size // 1024} KiB, {sp.get_piece_size()} pieces, {len(rows)} texts, of which the rules differ on {differ}")


if __name__ == "__main__":
    main()

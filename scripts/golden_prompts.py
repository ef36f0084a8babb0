#!/usr/bin/env python3
"""Writes tests/golden/llava/conversations.json: awkward conversations, and what other code makes of them.

    python scripts/golden_prompts.py CONVERSATION.PY

For the checkpoints with a chat template: transformers' `processor.apply_chat_template`, tokenised, images expanded. For
the templates that we use where a checkpoint has none: the text of the LLaVA code, whose file llava/conversation.py
(github.com/haotian-liu/LLaVA) is the argument, tokenised by transformers' processor. Ids are run-length encoded: -n
stands for n image tokens. null: the template refuses the conversation. Made with transformers 5.23, tokenizers 0.23.
"""

import importlib.util
import json
import sys

import golden_llava as golden
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

SIZES = [(61, 23), (20, 47), (40, 40), (5, 4)]
S, U, A = "system", "user", "assistant"
LONG = "The man with the red hat walks near the old house, and the dog sits behind the table. " * 12

CONVERSATIONS = {
    "one question": [(U, "<image>\nWhat is there?")],
    "no image": [(U, "Name a colour.")],
    "system": [(S, "Be brief."), (U, "<image>\nWhat is there?")],
    "system without image": [(S, "You see nothing. Guess."), (U, "What is there?")],
    "two turns": [(U, "<image>\nIs it red?"), (A, "No, it is blue."), (U, "How many?")],
    "five turns": [(U, "<image>\nA?"), (A, "B."), (U, "C?"), (A, "D."), (U, "E?"), (A, "F."), (U, "G?"), (A, "H."),
                   (U, "I?")],
    "system and turns": [(S, "Answer the questions."), (U, "<image>\nIs it red?"), (A, "No."), (U, "Sure?")],
    "image last": [(U, "What is there?\n<image>")],
    "image in the middle": [(U, "Look at <image> and tell me.")],
    "image in a later turn": [(U, "Hello."), (A, "Hello! Show me."), (U, "<image>\nHere it is.")],
    "images in both turns": [(U, "<image>\nFirst."), (A, "I see."), (U, "<image>\nSecond. Same?")],
    "two images in front": [(U, "<image>\n<image>\nWhich is larger?")],
    "two images without a break": [(U, "<image><image>\nWhich is larger?")],
    "three images between words": [(U, "Of <image>, <image> and <image>, which?")],
    "four images, two turns": [(U, "<image>\n<image>\nSame?"), (A, "No."), (U, "<image>\n<image>\nAnd these?")],
    "image shown by the assistant": [(U, "Show me a cat."), (A, "<image>\nHere."), (U, "Is it black?")],
    "image in the system turn": [(S, "<image>\nThis is the map."), (U, "Where am I?")],
    "only an image": [(U, "<image>")],
    "accents": [(U, "<image>\nEst-ce naïve, café, Über? cafe\u0301 Ω≈ç")],
    "other scripts": [(U, "<image>\n日本語の文です。 مرحبا بالعالم Привет हिन्दी")],
    "emoji": [(U, "<image>\nWho is 👩‍🚀 or 🏳️‍🌈? 👍🏽😀")],
    "tabs": [(U, "<image>\n\tcolumn\tcolumn\t")],
    "carriage returns": [(U, "<image>\r\nline one\r\nline two\r\n\r\n")],
    "blanks around": [(S, "  Be brief.  "), (U, "<image>\n   What is there?   "), (A, "  A dog.  "), (U, "  Sure?  ")],
    "line breaks around": [(U, "\n\n<image>\n\nWhat is there?\n\n")],
    "unusual blanks": [(U, "<image>\n\u3000\u00a0\u2003What?\u200b\u2028"), (A, "\x1f\x85Yes.\u00a0"), (U, "\x1cOh?\ufeff")],
    "markup": [(U, "<image>\n<b>\"Quotes\" & 'single'</b> {{ bos_token }} {% if x %} {# no #} \\n `a` $b$")],
    "special tokens": [(U, "<image>\nWhat is </s> or <s> or <pad>?"), (A, "An end</s>"), (U, "<|im_end|><|im_start|>?")],
    "begins with a special token": [(S, "<s>Be brief."), (U, "<image>\nWhat?")],
    "roles as text": [(U, "<image>\nUSER: ASSISTANT: [INST] x [/INST] <<SYS>> ###")],
    "placeholders that are none": [(U, "<image>\n< image> <Image> <image > &lt;image&gt; <im_start>")],
    "numbers": [(U, "<image>\n3.5 + 1,000 = $1,003.50 (12:30), 50%; e.g. x_1^2 ≠ −7…")],
    "long": [(U, "<image>\n" + LONG)],
    "answer without end": [(U, "<image>\nGo on:"), (A, "It is a"), (U, "dog?")],
}

# Checkpoint, and the LLaVA conversation whose text it gets where its own template is taken away.
TARGETS = {
    "llava15": ("llava15", None),
    "next_vicuna": ("next_vicuna", None),
    "next_mistral": ("next_mistral", None),
    "next_yi": ("next_yi", None),
    "vicuna_v1": ("llava15_odd", "vicuna_v1"),
    "mistral_instruct": ("next_mistral", "mistral_instruct"),
    "chatml_direct": ("next_yi", "chatml_direct"),
}


def parts(text, images):
    """A text with placeholders as the list that templates take; line breaks beside a placeholder are LLaVA's own."""
    pieces = text.split("<image>")
    content = []
    for i, piece in enumerate(pieces):
        if i > 0:
            content.append({"type": "image", "image": next(images)})
            piece = piece.lstrip("\n")
        if i + 1 < len(pieces):
            piece = piece.rstrip("\n")
        if piece:
            content.append({"type": "text", "text": piece})
    return content


def llava_text(conversation, turns, answer):
    conv = conversation.copy()
    conv.messages = []
    if turns[0][0] == S:
        mark = conversation.system.partition("system\n")
        conv.system = (mark[0] + mark[1] if mark[1] else "") + turns[0][1]
        turns = turns[1:]
    for role, text in [*turns, (A, answer)]:
        conv.append_message(conv.roles[role == A], text)
    return conv.get_prompt()


def run(proc, conversation, turns, pictures, image):
    """Prompt, text up to the end of an answer, ids; None where the template refuses."""
    if conversation is not None:
        prompt, answered = llava_text(conversation, turns, None), llava_text(conversation, turns, golden.ANSWER)
    else:
        listed = proc.chat_template != golden.STRING_TEMPLATE

        def messages(answer):
            queue = iter(pictures)
            spoken = [*turns, (A, answer)] if answer else turns
            return [{"role": r, "content": parts(t, queue) if listed else t} for r, t in spoken]

        try:
            prompt = proc.apply_chat_template(messages(None), add_generation_prompt=True, tokenize=False)
            answered = proc.apply_chat_template(messages(golden.ANSWER), add_generation_prompt=False, tokenize=False)
        except TemplateError:
            return None
    # As apply_chat_template with tokenize=True decides.
    special = not prompt.startswith(proc.tokenizer.bos_token)
    inputs = proc(images=pictures or None, text=[prompt], add_special_tokens=special)
    if conversation is None and listed:
        whole = proc.apply_chat_template(messages(None), add_generation_prompt=True, tokenize=True, return_dict=True)
        assert list(whole["input_ids"][0]) == list(inputs["input_ids"][0])
    ids = []
    for i in inputs["input_ids"][0]:
        if i != image:
            ids.append(int(i))
        elif ids and ids[-1] < 0:
            ids[-1] -= 1
        else:
            ids.append(-1)
    end = answered.rindex(golden.ANSWER) + len(golden.ANSWER)
    return {"prompt": prompt, "answered": answered[:end], "ids": ids}


def main():
    spec = importlib.util.spec_from_file_location("conversation", sys.argv[1])
    llava = importlib.util.module_from_spec(spec)
    sys.modules["conversation"] = llava
    spec.loader.exec_module(llava)
    folder = golden.pathlib.Path(__file__).parent.parent / "tests/golden/llava"
    cases = []
    for name, turns in CONVERSATIONS.items():
        count = sum(text.count("<image>") for _, text in turns)
        cases.append({"name": name, "turns": turns, "sizes": SIZES[:count]})
    targets = {}
    for target, (kind, style) in TARGETS.items():
        tok = Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
        proc = golden.processor(kind, folder / kind, tok)
        image = tok.token_to_id("<image>")
        conversation = llava.conv_templates[style] if style else None
        results = []
        for case in cases:
            pictures = [golden.picture(w, h) for w, h in case["sizes"]]
            results.append(run(proc, conversation, case["turns"], pictures, image))
        targets[target] = {"folder": kind, "results": results}
        print(target, sum(r is not None for r in results), "of", len(results))
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    rows = ['{"conversations": [\n' + ",\n".join(lines) + "\n],", '"targets": {']
    for i, (name, target) in enumerate(targets.items()):
        results = ",\n".join(json.dumps(r, ensure_ascii=False) for r in target["results"])
        rows.append(f'{json.dumps(name)}: {{"folder": "{target["folder"]}", "results": [\n{results}\n]}}'
                    + ("," if i + 1 < len(targets) else ""))
    (folder / "conversations.json").write_text("\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes tests/golden/{onevision,qwen_vl}/NAME/dpo: an adapter of a tiny checkpoint, and what PEFT and torch make of a pair.

    python scripts/golden_family_dpo.py [NAME ...]

Needs what golden_onevision.py and golden_qwen_vl.py need, their checkpoints, and peft (made with 0.21.2). Writes an adapter in
PEFT's layout (LoRA on the decoder), and `expected.json` with log-probabilities of a chosen and a rejected answer under base
and adapter, the DPO loss (sigmoid, beta 0.1), and `expected.safetensors` with its gradients and with logits.
"""

import json
import sys

import golden_llava as base
import golden_onevision as onevision
import golden_qwen_vl as qwen
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

BETA = 0.1
ANSWERS = ["The cat sits near the house.", "There is no cat, but a small red bird."]
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ALL = [(onevision, "onevision"), (onevision, "next_qwen3"), (qwen, "qwen2_5"), (qwen, "qwen2")]
# The question of Run in either script, as data files have it.
TURNS = {
    onevision: "<image>\nIs the cat near the old house, or naïve?",
    qwen: "Is the cat near<image> the old house, or naïve?",
}


def log_prob(run, tok, answer):
    """Of an answer and the end of the turn, behind the prompt."""
    ids = torch.tensor(tok.encode(answer, add_special_tokens=False).ids + [tok.token_to_id("<|im_end|>")])
    x = torch.cat([run.x[: run.end], run.model.get_input_embeddings()(ids)])
    first = int(run.positions[:, run.end])
    places = torch.cat([run.places[:, : run.end], torch.arange(first, first + len(ids)).expand(3, -1)], 1)
    logits = run.forward(x[None], places[:, None], torch.ones(1, len(x), dtype=torch.long))[0]
    return logits[run.end - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).sum(), logits


def golden(module, kind, tok):
    folder = module.OUT / kind
    out = folder / "dpo"
    out.mkdir(exist_ok=True)
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    run = module.Run(kind, model, module.processor(kind, tok), "wide")
    run.end = run.ids.shape[1] - len(tok.encode(base.ANSWER, add_special_tokens=False).ids)
    run.places = run.positions
    run.positions = run.positions[:1]
    with torch.no_grad():
        reference = [log_prob(run, tok, answer)[0] for answer in ANSWERS]
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS))
    trained = {n.replace(".default", ""): p for n, p in peft.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trained.values():
            p.copy_(torch.randn_like(p) * 0.1)
    peft.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    settings = json.loads((out / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = ".."
    base.dump(out / "adapter_config.json", settings)
    assert load_file(out / "adapter_model.safetensors").keys() == trained.keys()
    policy = [log_prob(run, tok, answer) for answer in ANSWERS]
    margin = (policy[0][0] - reference[0]) - (policy[1][0] - reference[1])
    loss = -torch.nn.functional.logsigmoid(BETA * margin)
    loss.backward()
    columns = list(range(0, tok.get_vocab_size(), 24))
    tensors = {f"grad.{n}": p.grad.contiguous() for n, p in trained.items()}
    tensors["logits"] = policy[0][1][-8:, columns].detach().contiguous()
    save_file(tensors, out / "expected.safetensors")
    expected = {"beta": BETA, "turn": TURNS[module], "sizes": run.sizes, "answers": ANSWERS, "loss": loss.item(), "columns": columns}
    expected |= {"reference": [r.item() for r in reference], "policy": [p.item() for p, _ in policy]}
    base.dump(out / "expected.json", expected)
    print(f"{kind}: loss {loss.item():.5f}, log-probabilities {expected['policy']}")


def main():
    torch.set_num_threads(1)
    toks = {onevision: onevision.tokenizer(), qwen: qwen.tokenizer()}
    for module, kind in ALL:
        if (module.OUT / kind).is_dir() and (not sys.argv[1:] or kind in sys.argv[1:]):
            golden(module, kind, toks[module])


if __name__ == "__main__":
    main()

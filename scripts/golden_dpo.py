#!/usr/bin/env python3
"""Writes tests/golden/dpo: preference pairs, a first adapter, and what TRL's DPOTrainer makes of them.

    python scripts/golden_dpo.py

Needs what golden_llava.py needs and its tests/golden/llava/llava15, peft (made with 0.21.2), trl (made with 1.16.0) and
datasets (made with 5.2.0). `cargo test` reads only what it writes:

pairs.jsonl, images/      eight pairs in TRL's columns, as an export writes them
adapter/                  the adapter that training starts from: LoRA on the language model, and a projector trained in full
expected.json             settings, token ids and log-probabilities of each pair, course of the training, other losses
expected.safetensors      grad.NAME: gradient of the first batch before clipping; final.NAME: tensors after the last step

Token ids are those that TRL fed to the model, but that the run of image tokens is written as one (`image_tokens` says how
long it was); `*_start`, the place of the first completion token, counts in that short form. TRL adds no special tokens to
what the template writes, so there is no BOS. All in f32, without dropout, on one CPU thread.
"""

import json
import os
import pathlib
import sys
import tempfile

# Nothing here is to be fetched from anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from datasets import Dataset, Image, List
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import golden_llava as base

OUT = base.OUT.parent / "dpo"
SOURCE = base.OUT / "llava15"
BATCH, STEPS = 4, 20
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
RATE = {"learning_rate": 5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 2}
SETTINGS = {"beta": 0.1, "per_device_train_batch_size": BATCH, "max_steps": STEPS} | ADAM | RATE
# Image, questions with the answers given so far between them, chosen, rejected.
OLD = "The street is old."
BOOK = "The image shows a young man who holds a red book in front of the house, and"
HAT = "A person wears a hat, and holds a large black ball under the sky."
PAIRS = [
    ("wide", ["What is in the image?"], "A dog sits near the tree.", "Two cats walk on the road."),
    ("tall", ["Is the cat near the old house, or naïve?"], "Yes.", "No, there is no cat in it. It is a small red bird."),
    # A long common beginning; a chosen answer that begins the rejected one; two turns.
    ("square", ["Tell what the picture shows."], f"{BOOK} a dog behind it.", f"{BOOK} two birds under it."),
    ("even", ["Describe the street."], OLD, f"{OLD} The car is blue, and the boat is green."),
    (
        "strip",
        ["Is there water?", "Yes, there is water to the left.", "  What is on the water? "],
        "There is a white boat on the water.",
        "There are 2 dogs. It is 3.5 m away…",
    ),
    ("tiny", ["How many balls?"], "There are two.", "There are three or four."),
    ("wide", ["Describe the image in detail, please."], HAT, "Sky."),
    ("tall", ["Who sits at the table?"], "The man and the people behind.", "The man and a cat."),
]


def text(role, value, image=False):
    content = [{"type": "image"}] if image else []
    return {"role": role, "content": content + [{"type": "text", "text": value}]}


def write_pairs():
    """Writes the pairs and their images, and returns them as TRL is given them."""
    (OUT / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for image, turns, chosen, rejected in PAIRS:
        file = f"images/{image}.png"
        base.picture(*base.VIEWS[image]).save(OUT / file)
        prompt = [text(["user", "assistant"][i % 2], turn, i == 0) for i, turn in enumerate(turns)]
        answers = {"chosen": [text("assistant", chosen)], "rejected": [text("assistant", rejected)]}
        rows.append({"images": [file], "prompt": prompt} | answers)
    (OUT / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for row in rows:
        row["images"] = [str(OUT / file) for file in row["images"]]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


class Trainer(DPOTrainer):
    """TRL's trainer, which also remembers what it does."""

    steps, grads = [], {}

    def trained(self):
        """What is trained, by its name in adapter_model.safetensors."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return {n.replace(".modules_to_save", "").replace(".default", ""): p for n, p in named.items()}

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self.steps:
            self.grads = {n: p.grad.clone() for n, p in self.trained().items()}
        rate = self.optimizer.param_groups[0]["lr"]
        self.steps.append({"loss": loss.item(), "learning_rate": rate, "ids": inputs["input_ids"].tolist()})
        return loss

    def log(self, logs, *args, **kwargs):
        if "grad_norm" in logs:
            # The rate was noted before the optimizer's step; what the trainer says of it must be the same.
            assert logs["learning_rate"] == self.steps[-1]["learning_rate"]
            self.steps[-1]["grad_norm"] = float(logs["grad_norm"])
        super().log(logs, *args, **kwargs)


def load_base():
    return LlavaForConditionalGeneration.from_pretrained(SOURCE, dtype=torch.float32, attn_implementation="eager")


def make_trainer(data, proc, folder):
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        modules_to_save=["multi_modal_projector"],
    )
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    plain = {"use_cpu": True, "bf16": False, "optim": "adamw_torch", "gradient_checkpointing": False, "max_length": None}
    config = DPOConfig(folder, train_sampling_strategy="sequential", **plain, **quiet, **SETTINGS)
    # A model that is wrapped by PEFT already would be compared with a copy of its first adapter (TRL 1.16 adds one named
    # "ref"). Wrapped by the trainer itself, its reference is the model with adapters switched off: the base with the base's
    # own projector. So the first values of the adapter are put in only afterwards.
    trainer = Trainer(load_base(), args=config, train_dataset=data, processing_class=proc, peft_config=lora)
    assert list(trainer.model.peft_config) == ["default"] and trainer.ref_model is None
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in trainer.trained().items():
            # B is not zero, as it would be by default, so that A has a gradient too.
            p.copy_(torch.randn_like(p) * 0.1) if "lora_" in name else p.add_(torch.randn_like(p) * 0.05)
    trainer.model.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)
    settings = json.loads((OUT / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "../../llava/llava15"
    base.dump(OUT / "adapter" / "adapter_config.json", settings)
    return trainer


def policy_logps(trainer, batch):
    """Sums over the completions, by the same forward pass as TRL's loss."""
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        return trainer.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs.sum(1).chunk(2)


def plain_logps(model, batch, row):
    """The same without TRL, PEFT, other rows or padding."""
    kept = batch["attention_mask"][row].bool()
    ids, mask = batch["input_ids"][row][kept], batch["completion_mask"][row][kept].bool()
    with torch.no_grad():
        logits = model(input_ids=ids[None], pixel_values=batch["pixel_values"][row : row + 1]).logits[0]
    return logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[mask[1:]].sum()


def sequence(batch, row):
    kept = batch["attention_mask"][row].bool()
    ids = batch["input_ids"][row][kept].tolist()
    start = batch["completion_mask"][row][kept].tolist().index(1)
    image, count = ids.index(base.IMAGE), ids.count(base.IMAGE)
    assert ids[image : image + count] == [base.IMAGE] * count and image + count < start
    return ids[: image + 1] + ids[image + count :], start - count + 1, count


def pair_results(trainer, base_model, batch):
    reference = trainer.compute_ref_log_probs(trainer.model, batch)
    policy = policy_logps(trainer, batch)
    results = []
    for i in range(BATCH):
        result = {}
        for side, name in enumerate(["chosen", "rejected"]):
            row = side * BATCH + i
            ids, start, count = sequence(batch, row)
            torch.testing.assert_close(plain_logps(base_model, batch, row), reference[side][i], rtol=1e-5, atol=1e-4)
            result |= {f"{name}_ids": ids, f"{name}_start": start, "image_tokens": count}
            result |= {f"reference_{name}": reference[side][i].item(), f"policy_{name}": policy[side][i].item()}
        results.append(result)
    return results


def first_losses(trainer, batch, singles):
    """TRL's losses of the first batch before any step."""

    def loss(kind, smoothing=0.0, batch=batch):
        trainer.loss_types, trainer.label_smoothing = [kind], smoothing
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, batch).item()

    # "sigmoid" ignores the smoothing in TRL 1.16. "aot" heeds it, and compares sorted ratios: where there is only one pair,
    # nothing is sorted, and it is the smoothed sigmoid loss.
    smoothed = sum(loss("aot", 0.1, single) for single in singles) / len(singles)
    assert loss("sigmoid", 0.1) == loss("sigmoid")
    results = {"sigmoid_label_smoothing_0.1": smoothed, "robust_label_smoothing_0.1": loss("robust", 0.1)}
    # The sums are divided by the number of completion tokens, the end of sequence included.
    results |= {"ipo": loss("ipo"), "ipo_uses_length_averaged_logps": True}
    # The one that is trained with comes last: it stays set.
    return results | {"sigmoid": loss("sigmoid")}


def main():
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = write_pairs()
    proc = base.processor("llava15", SOURCE, base.tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(data, proc, folder)
        batches = [trainer.data_collator([data[j] for j in range(i, i + BATCH)]) for i in range(0, len(data), BATCH)]
        singles = [trainer.data_collator([data[i]]) for i in range(BATCH)]
        results = {"settings": SETTINGS, "image_token_id": base.IMAGE, "bos": base.BOS, "eos": base.EOS}
        base_model = load_base()
        results["pairs"] = [result for batch in batches for result in pair_results(trainer, base_model, batch)]
        results["first_batch"] = first_losses(trainer, batches[0], singles)
        trainer.train()
    for i, step in enumerate(trainer.steps):
        assert step.pop("ids") == batches[i % 2]["input_ids"].tolist(), "the order of the pairs"
    assert len(trainer.steps) == STEPS and trainer.steps[0]["loss"] == results["first_batch"]["sigmoid"]
    results["steps"] = trainer.steps
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in results.items() if k not in ("pairs", "steps")]
    lines += [f'"{k}": [\n' + ",\n".join(json.dumps(v) for v in results[k]) + "\n]" for k in ("pairs", "steps")]
    (OUT / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")

    final = {n: p.detach().clone() for n, p in trainer.trained().items()}
    assert final.keys() == load_file(OUT / "adapter" / "adapter_model.safetensors").keys() == trainer.grads.keys()
    assert all(g.abs().max() > 0 for g in trainer.grads.values())
    tensors = {f"grad.{n}": g for n, g in trainer.grads.items()} | {f"final.{n}": p for n, p in final.items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, OUT / "expected.safetensors")
    for step in trainer.steps:
        print(f"loss {step['loss']:.4f}, rate {step['learning_rate']:.2e}, gradient {step['grad_norm']:.3f}")


if __name__ == "__main__":
    main()

"""Reads an export as a trainer would, and fails loudly where that does not work.

    python scripts/check_exports.py CELL_FOLDER IMAGE_FOLDER [--step]

With --step, the tiny LLaVA of golden_llava.py makes one step of TRL's DPOTrainer on the Parquet file and one on the JSON lines, as they
are loaded (needs trl, peft and torch). CELL_FOLDER holds pairs.parquet and pairs.jsonl. Needs `datasets` and `pillow`; with `trl` installed, every row also goes
through TRL's own preparation of multimodal messages. `cargo test --test method export::` leaves an example in
target/tmp/export/out/cells/mini__0.90 (images: target/tmp/export/images).
"""

import io
import math
import sys
from pathlib import Path

from datasets import Image, List, load_dataset
from PIL import Image as Pillow

try:
    from trl.data_utils import is_conversational, prepare_multimodal_messages
except ImportError:
    is_conversational = prepare_multimodal_messages = None


def plain(message):
    """A message without the empty text of its images, which Parquet's columns need and JSON lines leave out."""
    pieces = [{k: v for k, v in piece.items() if v is not None} for piece in message["content"]]
    return {"role": message["role"], "content": pieces}


def same(a, b):
    """Equal, but for the last bits of numbers: the JSON reader of `datasets` drops some of them."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def check_row(row, line, image_folder):
    images = row["images"]
    assert len(images) == len(line["images"]), (len(images), line["images"])
    for image, name in zip(images, line["images"]):
        assert isinstance(image, Pillow.Image), type(image)
        with Pillow.open(io.BytesIO((image_folder / name).read_bytes())) as original:
            assert (image.size, image.tobytes()) == (original.size, original.tobytes()), name
    for column in ["prompt", "chosen", "rejected"]:
        assert [plain(m) for m in row[column]] == [plain(m) for m in line[column]], (row[column], line[column])
    placeholders = sum(p["type"] == "image" for m in row["prompt"] for p in m["content"])
    assert placeholders == len(images), (placeholders, len(images))
    for column in set(row) - {"images", "prompt", "chosen", "rejected"}:
        assert same(row[column], line[column]), (column, row[column], line[column])
    if prepare_multimodal_messages:
        assert is_conversational(row)
        prompt = prepare_multimodal_messages(row["prompt"], images=images)
        placed = [p["image"] for m in prompt for p in m["content"] if p["type"] == "image"]
        assert placed == images
        for column in ["chosen", "rejected"]:
            prepare_multimodal_messages(row[column], images=[])


def step(parquet):
    """One step of DPO with a LoRA adapter; the loss that TRL reports."""
    import tempfile

    from peft import LoraConfig
    from transformers import LlavaForConditionalGeneration
    from trl import DPOConfig, DPOTrainer

    sys.path.insert(0, str(Path(__file__).parent))
    import golden_llava as tiny

    folder = Path(__file__).parent.parent / "tests/golden/llava/llava15"

    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            out, max_steps=1, per_device_train_batch_size=4, logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, disable_tqdm=True,
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
        trainer = DPOTrainer(
            LlavaForConditionalGeneration.from_pretrained(folder), args=config, train_dataset=parquet,
            processing_class=tiny.processor("llava15", folder, tiny.tokenizer()), peft_config=lora,
        )
        return trainer.train().training_loss


def main():
    cell, image_folder = map(Path, sys.argv[1:3])
    parquet = load_dataset("parquet", data_files=str(cell / "pairs.parquet"), split="train")
    lines = load_dataset("json", data_files=str(cell / "pairs.jsonl"), split="train")
    assert parquet.features["images"] == List(Image()), parquet.features["images"]
    assert parquet.num_rows == lines.num_rows, (parquet.num_rows, lines.num_rows)
    assert list(parquet.features) == list(lines.features), (parquet.features, lines.features)
    for row, line in zip(parquet, lines):
        check_row(row, line, image_folder)
    trl = "TRL's preparation accepts them" if prepare_multimodal_messages else "TRL is not installed"
    print(f"{parquet.num_rows} pairs: Parquet and JSONL agree, images decode, {trl}")
    if sys.argv[3:] == ["--step"]:
        for name, rows in [("Parquet", parquet), ("JSON lines", lines)]:
            loss = step(rows)
            # A fresh adapter is its base, so every margin is 0.
            assert abs(loss - math.log(2)) < 1e-3, loss
            print(f"one step of TRL's DPOTrainer on the {name}: loss {loss:.4f}")


if __name__ == "__main__":
    main()

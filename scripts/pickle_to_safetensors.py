#!/usr/bin/env python3
"""Writes the tensors of a model folder's PyTorch pickles (*.bin) as safetensors beside them: same names, values and types.

    python scripts/pickle_to_safetensors.py FOLDER

Needs torch and safetensors. Pickles are loaded as tensors only (weights_only), so that none of them can run code. Of shards an index
is written; adapter_model.bin and non_lora_trainables.bin of an adapter are converted too. One shard at a time is in memory.
"""

import json
import pathlib
import re
import sys

import torch
from safetensors.torch import save_file

WEIGHTS = re.compile(r"(?:pytorch_model|model)(-\d+-of-\d+)?")
ALONE = ("adapter_model", "non_lora_trainables")


def convert(source, target):
    """Converts one file; returns its tensors' names and bytes."""
    tensors = torch.load(source, map_location="cpu", weights_only=True)
    tensors = tensors.get("state_dict", tensors)
    # Tensors that share memory or are views are written out each.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    part = target.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.rename(target)
    print(target)
    return {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    index, total = {}, 0
    found = False
    for source in sorted(folder.glob("*.bin")):
        weights = WEIGHTS.fullmatch(source.stem)
        if not weights and source.stem not in ALONE:
            continue
        found = True
        name = f"model{weights[1] or ''}" if weights else source.stem
        target = folder / f"{name}.safetensors"
        sizes = convert(source, target)
        if weights and weights[1]:
            index |= dict.fromkeys(sizes, target.name)
            total += sum(sizes.values())
    if not found:
        sys.exit(f"{folder}: no pytorch_model*.bin, adapter_model.bin or non_lora_trainables.bin")
    if index:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()

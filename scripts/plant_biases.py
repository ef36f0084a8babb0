#!/usr/bin/env python3
"""A base that makes things up although it sees the picture: the demo's LLaVA, trained a little on what it writes blind.

    python3 scripts/plant_biases.py BDHS OUT [--share 0.5] [--scenes 300]
    bdhs sweep examples/regimes.toml --train --eval --model OUT/model --out runs/planted

Scenes of the training split get blind answers (rho 1, no guidance); these take the true answers' place in a share of the rows, and the
model is trained on the rows and merged with its adapter into OUT/model. BDHS is the command. Standard library only.
"""

import argparse
import json
import pathlib
import subprocess

CONFIG = """model.path = "demo-llava"
data.file = "scenes/data.json"
[sampling]
rho = 1.0
guidance = false
max_sentence_tokens = 32
max_response_tokens = 128
[grid]
encoders = ["demo-mpnet"]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bdhs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--scenes", type=int, default=300)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bdhs = args.bdhs.resolve()

    def run(*command):
        subprocess.run([bdhs, "--quiet", *map(str, command)], check=True, cwd=args.out, stdout=subprocess.DEVNULL)

    run("demo", "scenes", "--split", "train", "--count", args.scenes, "--seed", 2, "--out", "scenes")
    (args.out / "blind.toml").write_text(CONFIG)
    run("sample", "blind.toml", "--threshold", "0.97", "--out", "blind")
    text = (args.out / "blind/cells/demo-mpnet__0.97/pairs.jsonl").read_text()
    # An empty blind answer, or one that equals the true one, plants nothing.
    rows = [row for row in map(json.loads, text.splitlines()) if not row["flags"]]
    planted = 0
    for i, row in enumerate(rows):
        # Every row whose place crosses a multiple of 1 / share.
        if int((i + 1) * args.share) > int(i * args.share):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            planted += 1
    (args.out / "planted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("train", "--model", "demo-llava", "--pairs", "planted.jsonl", "--images", "scenes", "--loss", "sft", "--rank", 8,
        "--alpha", 16, "--learning-rate", "1e-3", "--epochs", 2, "--batch", 16, "--out", "adapter")
    run("merge", "adapter", "--out", "model")
    print(f"{args.out / 'model'}: {planted} of {len(rows)} answers are blind ones")


if __name__ == "__main__":
    main()

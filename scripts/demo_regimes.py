#!/usr/bin/env python3
"""In which regime does training on such pairs change the demo model? Variants of pairs and losses over several seeds, judged on
scenes of the selection split, which nothing else is measured on.

    python3 scripts/demo_regimes.py BDHS OUT.json [--seeds 5] [--work DIR]

BDHS is the command (target/release/bdhs). Standard library only. A work folder that is given again is continued.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

LIMITS = "max_sentence_tokens = 32\nmax_response_tokens = 128\n"
# Name: what is sampled from, [sampling], loss, beta.
VARIANTS = {
    "guided, rho .9 (the default cell)": ("demo-scenes", "rho = 0.9\n", "sigmoid", 1.0),
    "guided, rho 1": ("demo-scenes", "rho = 1.0\n", "sigmoid", 1.0),
    "unguided, rho 1": ("demo-scenes", "rho = 1.0\nguidance = false\n", "sigmoid", 3.0),
    "guided, rho .9, scenes of the training split": ("train", "rho = 0.9\n", "sigmoid", 1.0),
    "unguided, rho 1, scenes of the training split": ("train", "rho = 1.0\nguidance = false\n", "sigmoid", 3.0),
    "control: SFT on the chosen answers": ("demo-scenes", "rho = 0.9\n", "sft", 1.0),
    "control: SFT, scenes of the training split": ("train", "rho = 0.9\n", "sft", 1.0),
}
STATISTICS = {
    "pope": ["f1", "accuracy", "yes_ratio"],
    "vqat": ["accuracy"],
    "gqa": ["accuracy"],
    "recall-coco": ["recall", "chair_i"],
}


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def scores(folder):
    found = {}
    for metric, names in STATISTICS.items():
        result = json.loads((folder / metric / "result.json").read_text())["details"]["scores"]
        found |= {f"{metric} {name}": result[name]["value"] for name in names}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bdhs", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=pathlib.Path, default=None)
    args = parser.parse_args()
    work = args.work or pathlib.Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    bdhs = [args.bdhs.resolve(), "--quiet", "--threads", "1"]
    if not (work / "select").exists():
        run(*bdhs, "demo", "benchmarks", "--split", "select", "--out", work / "select")
        run(*bdhs, "demo", "scenes", "--split", "train", "--out", work / "train")

    def judge(model, folder):
        if not (folder / "eval.json").exists():
            run(*bdhs, "eval", "all", "--model", model, "--data", work / "select", "--out", folder,
                "--only", ",".join(STATISTICS), "--ocr", "false", "--max-new-tokens", "128", "--resamples", "0")
        return scores(folder)

    def pairs(number, source, sampling):
        folder = work / f"pairs-{number}"
        data = work / "train/data.json" if source == "train" else source
        config = work / f"pairs-{number}.toml"
        config.write_text(f'model.path = "demo-llava"\ndata.file = "{data}"\n[sampling]\n{sampling}{LIMITS}'
                          f'[grid]\nencoders = ["demo-mpnet"]\n')
        run(*bdhs, "sample", config, "--threshold", "0.97", "--out", folder)
        saved = json.loads((folder / "run.json").read_text())["config"]["data"]
        return folder / "cells/demo-mpnet__0.97/pairs.jsonl", pathlib.Path(saved["file"]).parent

    def one(number, seed, file, images, loss, beta):
        out = work / f"model-{number}-{seed}"
        run(*bdhs, "train", "--pairs", file, "--images", images, "--out", out, "--loss", loss, "--beta", beta,
            "--seed", seed)
        return judge(out, work / f"eval-{number}-{seed}")

    result = {"command": "python3 scripts/demo_regimes.py target/release/bdhs OUT.json", "seeds": args.seeds,
              "baseline": judge("demo-llava", work / "eval-baseline"), "variants": {}}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {}
        for number, (name, (source, sampling, loss, beta)) in enumerate(VARIANTS.items()):
            file, images = pairs(number, source, sampling)
            jobs[name] = [pool.submit(one, number, seed, file, images, loss, beta) for seed in range(args.seeds)]
        for name, futures in jobs.items():
            seeds = [future.result() for future in futures]
            result["variants"][name] = {
                key: {"mean": statistics.mean(s[key] for s in seeds),
                      "sd": statistics.stdev(s[key] for s in seeds) if len(seeds) > 1 else None,
                      "values": [s[key] for s in seeds]}
                for key in result["baseline"]
            }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| | " + " | ".join(result["baseline"]) + " |")
    print("|---" * (1 + len(result["baseline"])) + "|")
    print("| baseline | " + " | ".join(f"{x:.2f}" for x in result["baseline"].values()) + " |")
    for name, keys in result["variants"].items():
        print(f"| {name} | " + " | ".join(f"{k['mean']:.2f} ±{k['sd'] or 0:.2f}" for k in keys.values()) + " |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Figures in README.md and docs/, written from result files: `benches/results/` and `docs/results/`.

    pages.py            writes every generated block
    pages.py --check    writes nothing; exit status 1 where a page and its result files differ
    pages.py --self-check    changes a page and a result file in a copy, and looks whether --check notices

A block lies between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `BLOCKS` says what makes it. Only the standard library is
needed, so `.ci/run` checks pages without the peers.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import table as gpu

HERE = Path(__file__).resolve()
PAGES = ["README.md", "docs/results.md", "docs/performance.md"]
BLOCK = re.compile(r"(<!-- figures: ([a-z0-9-]+) -->\n)(.*?)(<!-- end of figures -->)", re.S)


class Results:
    """Result files by their path below the root."""

    def __init__(self, root):
        self.root = Path(root)

    def __call__(self, path):
        return json.loads((self.root / path).read_text())


def machine(report):
    m = report["machine"]
    features = f" ({', '.join(m['features'])})" if m.get("features") else ""
    commit = f", commit {m['commit']}" if m.get("commit") else ""
    return f"{m['cpu']}, {m['cores']} cores{features}, {m['date']}{commit}; load average {m['load_before'][0]} before the run, {m['load_after'][0]} after it."


def versions(report):
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."


def plural(count, what):
    return f"{count} {what}{'' if str(count) == '1' else 's'}"


# ---- ops on a CPU ----


def best_peers(rows):
    """Peers of a row, each with its best number of threads: `{(case, threads): {name: (ratio, low, high, threads of the peer)}}`.

    Some peers are slower on two threads than on one. Then the ratio is against their time on one."""
    timed = {(row["case"], row["threads"]): row for row in rows if "ours" in row}
    found = {}
    for (case, threads), row in timed.items():
        alone = timed.get((case, 1), row)
        found[case, threads] = {}
        for name, peer in row["peers"].items():
            other = alone["peers"].get(name, peer)
            if other["median"] < peer["median"]:
                ratio = other["median"] / row["ours"]["median"]
                found[case, threads][name] = (ratio, ratio, ratio, 1)
            else:
                found[case, threads][name] = (peer["ratio"], peer["ratio_low"], peer["ratio_high"], threads)
    return found


def ops_cell(row, peers):
    ours = row["ours"]
    rate = f"{row['rate'] / 1e9:.1f} {'GFLOP/s' if row['flops'] else 'GB/s'}"
    share = f"{100 * row['share']:.0f} %" if row["share"] else ""
    times = f"{ours['median'] * 1e3:.3g} [{ours['p20'] * 1e3:.3g}, {ours['p80'] * 1e3:.3g}]"

    def one(name, ratio, low, high, threads):
        if threads != row["threads"]:
            return f"{name} **{ratio:.2f}** (1 thread)"
        return f"{name} **{ratio:.2f}** [{low:.2f}, {high:.2f}]"

    text = "; ".join(one(name, *figures) for name, figures in peers.items())
    return f"| {row['case']} | {row['threads']} | {times} | {rate} | {share} | {text or '-'} |"


def ops_table(report):
    ceilings = "; ".join(
        f"{plural(threads, 'thread')}: read {c['read'] / 1e9:.1f} GB/s, copy {c['copy'] / 1e9:.1f} GB/s, f32 product {c['sgemm'] / 1e9:.0f} GFLOP/s"
        for threads, c in report["ceilings"].items()
    )
    lines = [machine(report), "", f"Ceilings of the same run: {ceilings}.", ""]
    lines += ["| case | threads | ms, median [p20, p80] | rate | of ceiling | peer / ours, median of rounds [least, most] |", "|---|---|---|---|---|---|"]
    peers = best_peers(report["rows"])
    lines += [ops_cell(row, peers[row["case"], row["threads"]]) for row in report["rows"] if "ours" in row]
    lines += ["", "| memory beyond the input, at the peak | ours | peer |", "|---|---|---|"]
    for row in report["rows"]:
        for name, peer in row["peers"].items():
            if "peak_bytes" in row:
                lines.append(f"| {row['case']} | {row['peak_bytes'] / 1e6:.1f} MB | {name} {peer['peak_bytes'] / 1e6:.1f} MB |")
    return [*lines, "", versions(report)]


SHORT = [
    ("row-wise cosine", r"cosine/rows (hot|cold)/.*"),
    ("count of all pairs, five thresholds", r"cosine/count/.*"),
    ("the same where no pair can be left out", r"cosine/count, all close/.*"),
    ("top 10", r"cosine/top 10/.*"),
    ("ragged mean pooling, normalised", r"pool/mean/ragged/.*"),
]


def ops_short(report):
    """Every case that has a peer, one line a case: what wins and what loses in one table."""
    peers = best_peers(report["rows"])
    lines = ["| case | peer's time / ours, 1 thread / 2 threads; below 1 the peer is faster |", "|---|---|"]
    for title, pattern in SHORT:
        for case in dict.fromkeys(case for case, _ in peers if re.fullmatch(pattern, case)):
            names = peers[case, 1]
            text = "; ".join(f"{name} " + " / ".join(mark(peers[case, threads][name][0]) for threads in (1, 2)) for name in names)
            lines.append(f"| {title}: `{case}` | {text} |")
    every = [(ratio, case) for (case, _), named in peers.items() for ratio, *_ in named.values()]
    slower = sum(ratio < 1 for ratio, _ in every)
    return [*lines, "", f"The peer is faster in {slower} of {len(every)} comparisons. {machine(report)}"]


def mark(ratio):
    return f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


# ---- encoders on a CPU ----


def encode_cell(row):
    peers = []
    for name, peer in row["peers"].items():
        if "failed" in peer:
            peers.append(f"{name}: failed")
        else:
            peers.append(f"{name} {peer['texts_per_second']:.0f} **{peer['ratio']:.2f}** [{peer['ratio_low']:.2f}, {peer['ratio_high']:.2f}]")
    times = " [{p20:.3g}, {p80:.3g}]".format(**{key: 1e3 * value for key, value in row["ours"].items()})
    return f"| {row['case']} | {row['threads']} | {row['texts_per_second']:.0f} | {1e3 * row['ours']['median']:.3g}{times} | {'; '.join(peers)} |"


def encode_table(report):
    lines = [machine(report), ""]
    lines += ["| case | threads | ours, texts/s | ms, median [p20, p80] | peer: texts/s, **peer / ours**, median of rounds [least, most] |", "|---|---|---|---|---|"]
    lines += [encode_cell(row) for row in report["rows"]]
    for row in report["rows"]:
        lines += [f"\n{row['case']}: {name}: {peer['failed']}" for name, peer in row["peers"].items() if "failed" in peer]
    ratios = [peer["ratio"] for row in report["rows"] for peer in row["peers"].values() if "ratio" in peer]
    return [*lines, "", f"Median of all ratios: {statistics.median(ratios):.2f}.", "", versions(report)]


def encode_short(report):
    cases = dict.fromkeys(row["case"] for row in report["rows"])
    at = {(row["case"], row["threads"]): row["peers"] for row in report["rows"]}
    names = dict.fromkeys(name for peers in at.values() for name in peers)
    lines = [f"| case | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for case in cases:
        cells = [" / ".join(mark(at[case, n][name]["ratio"]) for n in (1, 2)) if "ratio" in at[case, 1].get(name, {}) else "" for name in names]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return [*lines, "", machine(report)]


def span(report, peer, dtype):
    ratios = [row["peers"][peer]["ratio"] for row in report["rows"] if row["case"].endswith(f"/{dtype}") and "ratio" in row["peers"].get(peer, {})]
    return f"{min(ratios):.2f} to {max(ratios):.2f} x"


# ---- sampling on a CPU ----

WAYS = {"hidden": "masked tokens hidden", "dropped": "masked tokens left out"}


def batches(model):
    """What a batch of the faster way held, by way."""
    return {way: plural(model["transformers"]["ways"][way]["guided"][0]["attempts_per_batch"], "attempt") for way in WAYS}


def grids_last(model):
    """Rows with each encoder twice go to the end: they cost the peer twice and ours hardly more."""
    return sorted(model["rows"], key=lambda row: "twice" in row["case"])


def sample_table(report):
    lines = [f"{machine(report)} {report['settings']['dtype']} on both sides.", ""]
    lines += [
        "| image tokens | run | ours, s | transformers, masked tokens hidden, s | ratio | transformers, masked tokens left out, s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in report["models"]:
        for row in grids_last(model):
            guided, unguided = row["attempts"]
            attempts = plural(guided, "attempt") + (f" + {unguided} unguided" if unguided else "")
            peers = " | ".join(f"{row['peers'][way]['seconds']:.0f} | **{row['peers'][way]['ratio']:.1f}**" for way in WAYS)
            name = row["case"] + (f", {row['cells']} cells" if row["cells"] > 1 else "")
            lines.append(f"| {model['image_tokens']} | {name}: {attempts}; ours generated {row['generated']} | {row['seconds']:.1f} | {peers} |")
    lines += ["", "| image tokens | transformers | tokens drawn per second | seconds per attempt (prefill; attempts watched) |", "|---|---|---|---|"]
    for model in report["models"]:
        lines.append(f"| {model['image_tokens']} | (ours) | {model['tokens_per_second']:.1f} | |")
        for way, label in WAYS.items():
            for row in model["transformers"]["ways"][way]["guided"]:
                size = plural(row["attempts_per_batch"], "attempt")
                seconds = f"{row['seconds']:.2f} ({row['prefill']:.2f}; {row['watched']})"
                lines.append(f"| {model['image_tokens']} | {label}, {size} a batch | {row['tokens_per_second']:.1f} | {seconds} |")
    lines += ["", "| image tokens | the same work? | ours, mean | transformers, mean | apart, standard errors |", "|---|---|---|---|---|"]
    for model in report["models"]:
        for name, row in model["same_work"].items():
            mean = lambda side: f"{side['mean']:.3g} +- {side['error']:.2g} (of {side['count']})"
            lines.append(f"| {model['image_tokens']} | {name} | {mean(row['ours'])} | {mean(row['transformers'])} | {row['apart']:+.1f} |")
    return [*lines, "", versions(report)]


def sample_short(report):
    lines = ["| case | masked tokens hidden | masked tokens left out |", "|---|---|---|"]
    for model in report["models"]:
        size = batches(model)
        for row in grids_last(model):
            cells = " | ".join(f"{row['peers'][way]['ratio']:.1f} x ({size[way]} a batch)" for way in WAYS)
            lines.append(f"| {model['image_tokens']} image tokens, {row['case']} | {cells} |")
    return [*lines, "", f"{machine(report)} The peer's time is a projection from the attempts that were watched."]


# ---- the rest ----


def grid_text(summary):
    """The grid as the command prints it."""
    lines = []
    for encoder in dict.fromkeys(cell["encoder"] for cell in summary["cells"]):
        cells = [cell for cell in summary["cells"] if cell["encoder"] == encoder]
        attempts = len(cells[0]["accepted_by_attempt"])
        titles = ["eps", "pairs", *(f"at {i}" for i in range(1, attempts + 1)), "forced", "mean", "phi 5%", "50%", "95%", "flagged"]
        lines += [f"**{encoder}**", "", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        for cell in cells:
            phi = [f"{cell['phi'][key]:.3f}" for key in ("p05", "p50", "p95")]
            row = [f"{cell['threshold']:.2f}", cell["pairs"], *cell["accepted_by_attempt"], cell["forced"], f"{cell['mean_attempts']:.2f}", *phi, cell["flagged"]]
            lines.append("| " + " | ".join(map(str, row)) + " |")
        lines.append("")
    one = summary["candidates_if_independent"]
    made = summary["candidates_generated"]
    flags = ", ".join(f"{name} {count}" for name, count in summary["flags"].items() if count)
    lines.append(f"{summary['samples']} samples, {made:,} candidates generated; {one:,} if each cell were a run of its own ({one / made:.1f} x).")
    lines += ["", f"Flags of candidates: {flags or 'none'}."]
    for encoder in summary["truncation"]:
        if encoder["candidates"] or encoder["references"]:
            cut = " and ".join(f"{100 * encoder[of]:.1f} % of {of}" for of in ("candidates", "references"))
            lines.append(f"{encoder['encoder']} ({encoder['max_tokens']} tokens) cuts {cut}.")
    return lines


def scores_table(with_image, without):
    def score(metric):
        s = metric["score"]
        return f"{s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"

    lines = ["| metric, score | with the image | rho 1 |", "|---|---|---|"]
    lines += [f"| `{a['metric']}`, {a['name']} | {score(a)} | {score(b)} |" for a, b in zip(with_image["metrics"], without["metrics"])]
    return lines


def readme_speed(results):
    sample, encode, ops = (results(f"benches/results/{name}.json") for name in ("sample-vs-transformers-cpu", "encode-cpu", "ops-cpu"))
    model = sample["models"][-1]
    one, grid = (next(row for row in model["rows"] if row["case"].startswith(name) and "twice" not in row["case"]) for name in ("one cell", "grid"))
    size = batches(model)
    max_batch = max(row["attempts_per_batch"] for row in model["transformers"]["ways"]["dropped"]["guided"])
    peers = best_peers(ops["rows"])
    top = [named["faiss knn"][0] for (case, _), named in peers.items() if "faiss knn" in named]
    features = ", ".join(ops["machine"]["features"])
    date = sample["machine"]["date"]
    seconds = lambda row, way: f"{row['peers'][way]['seconds']:.0f} s"
    return [
        f"- **Sampling**, ten photos of {model['image_tokens']:,} image tokens, f32, 2 CPU cores ({date}): one cell takes {one['seconds']:.1f} s, a grid of {grid['cells']} cells "
        f"{grid['seconds']:.1f} s. The same method written with transformers: {seconds(one, 'dropped')} and {seconds(grid, 'dropped')} where masked tokens are left out "
        f"({size['dropped']} a batch), {seconds(one, 'hidden')} and {seconds(grid, 'hidden')} where they are hidden (`scripts/bench-sample`)."
        + (" A peer that batches ten attempts was not timed in this run; with masked tokens left out it is 2.6 to 3 times as fast (timed by hand)." if max_batch == 1 else ""),
        f"- **Sentence encoders** ({encode['machine']['date']}, a CPU with AVX-512): {span(encode, 'sentence-transformers', 'f32')} the speed of sentence-transformers in f32, "
        f"{span(encode, 'sentence-transformers', 'bf16')} in bf16 (`scripts/bench-encode`). On a CPU with AVX2 alone the gain is smaller: about 1.05 x for MiniLM in f32 (timed by hand, no result file).",
        f"- **Slower than a peer**: top 10 takes {1 / max(top):.2f} to {1 / min(top):.2f} times as long as faiss; row-wise cosine on one thread is behind simsimd in f32 and bf16 "
        f"(`scripts/bench-ops`, {features}).",
    ]


def readme_gpu(results):
    """What the last recorded run on a GPU showed, by its own record of checks."""
    report, checks = results("benches/results/gpu-h100.json"), results("benches/results/checks-h100.json")
    plain = [check for check in checks["checks"] if "with" not in check]
    named = lambda status: ", ".join(check["check"] for check in plain if check["status"] == status)
    share = {row["case"]: f"{100 * row['share']:.0f} %" for row in report["rows"] if row["share"] is not None}
    of = lambda *parts: next(value for case, value in share.items() if all(part in case for part in parts))
    slower = [
        f"{name} takes {100 * p['ratio']:.0f} % of our time in `{row['case']}`" for row in report["rows"] for name, p in row["peers"].items() if p.get("ratio", 1) < 1
    ]
    return [
        f"- **Verified** on one {report['machine']['gpu']} ({report['machine']['date']}, state {report['commit']}): passed {named('passed')}; **failed {named('failed')}**. "
        "The likely cause of the failures was taken back. No GPU has run the state after that.",
        f"- **Measured** in that run, as shares of ceilings measured in the same run: pooling {of('pool/gpu mean cold', 'ragged')} and {of('pool/gpu mean cold', 'full')} of the read rate, "
        f"row-wise cosine {of('cosine/gpu rows cold', 'f32')} and {of('cosine/gpu rows cold', 'bf16')}, prefill of a 7B {of('prefill 7B')} of the product rate.",
        f"- **Short of the goal**: decode steps of a 7B reach {of('decode 7B/64')} (64 rows) and {of('decode 7B/256')} (256 rows) of the read rate; the goal was 60 %. "
        f"**Slower than a peer**: {'; '.join(slower)}.",
    ]


BLOCKS = {
    "readme-speed": readme_speed,
    "readme-gpu": readme_gpu,
    "ops-cpu": lambda r: ops_table(r("benches/results/ops-cpu.json")),
    "ops-cpu-short": lambda r: ops_short(r("benches/results/ops-cpu.json")),
    "encode-cpu": lambda r: encode_table(r("benches/results/encode-cpu.json")),
    "encode-cpu-short": lambda r: encode_short(r("benches/results/encode-cpu.json")),
    "sample-cpu": lambda r: sample_table(r("benches/results/sample-vs-transformers-cpu.json")),
    "sample-cpu-short": lambda r: sample_short(r("benches/results/sample-vs-transformers-cpu.json")),
    "ops-gpu": lambda r: gpu.sections(r.root / "benches/results"),
    "grid-demo": lambda r: grid_text(r("docs/results/demo.summary.json")),
    "grid-photos": lambda r: grid_text(r("docs/results/photos.summary.json")),
    "grid-captions": lambda r: grid_text(r("docs/results/captions.summary.json")),
    "demo-scores": lambda r: scores_table(r("docs/results/demo.eval.json"), r("docs/results/demo.eval-masked.json")),
}


def make(root, write):
    """The pages whose blocks differ from what the result files say; they are written if `write`."""
    results, stale = Results(root), []
    for page in PAGES:
        path = Path(root) / page
        text = path.read_text()
        if text.count("<!-- figures:") != len(BLOCK.findall(text)):
            raise SystemExit(f"{page}: a block is not closed; expected `<!-- end of figures -->` after each `<!-- figures: NAME -->`")

        def fill(match):
            name = match[2]
            if name not in BLOCKS:
                raise SystemExit(f"{page}: no block is called {name}; there are {', '.join(BLOCKS)}")
            return match[1] + "\n".join(BLOCKS[name](results)) + "\n" + match[4]

        made = BLOCK.sub(fill, text)
        if made != text:
            stale.append(page)
            if write:
                path.write_text(made)
    return stale


def self_check():
    """A copy is fresh; one digit changed in a block, then one in a result file: each is noticed."""
    root = HERE.parents[2]
    check = lambda copy: subprocess.run([sys.executable, copy / "benches/peers/pages.py", "--check"], capture_output=True).returncode
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("benches/peers", "benches/results", "docs"):
            shutil.copytree(root / name, copy / name)
        shutil.copy(root / "README.md", copy)
        assert check(copy) == 0, "the pages are stale as they are"
        page = copy / "docs/results.md"
        fresh = page.read_text()
        block = BLOCK.search(fresh)
        at = next(i for i in range(block.start(3), block.end(3)) if fresh[i].isdigit())
        page.write_text(fresh[:at] + str((int(fresh[at]) + 1) % 10) + fresh[at + 1 :])
        assert check(copy) == 1, "a digit changed in a page was not noticed"
        page.write_text(fresh)
        result = copy / "docs/results/demo.summary.json"
        summary = json.loads(result.read_text())
        summary["cells"][0]["pairs"] += 1
        result.write_text(json.dumps(summary))
        assert check(copy) == 1, "a number changed in a result file was not noticed"
    print("a changed digit is noticed in a page and in a result file")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--self-check", action="store_true")
    args = parser.parse_args()
    if args.self_check:
        return self_check()
    stale = make(HERE.parents[2], write=not args.check)
    if args.check and stale:
        raise SystemExit(f"{', '.join(stale)}: figures differ from the result files; run `python3 benches/peers/pages.py`")


if __name__ == "__main__":
    main()

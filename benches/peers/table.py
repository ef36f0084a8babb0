#!/usr/bin/env python3
"""The GPU section of docs/performance.md, from all gpu-*.json that `gpu.py` wrote, and transformers-*.json of the same GPUs that
`bdhs_transformers.py` wrote. `pages.py` puts it into the page; run as a program this checks the section of a made-up run.
"""

import json
import re
import tempfile
from pathlib import Path

ATTEMPTS = r"sample/gpu attempts 7B/(\d+) x 4 x 40 tokens/bf16"


def clocks(state):
    if not state:
        return "not read"
    return f"SM {state['clocks.sm']}, memory {state['clocks.mem']}, {state['temperature.gpu']} C, {state['power.draw']}"


def head(report):
    m = report["machine"]
    size = f"{m['multiprocessors']} multiprocessors, {m['l2_bytes'] / 1e6:.0f} MB of L2; " if "multiprocessors" in m else ""
    commit = f", commit {report['commit']}" if report["commit"] else ""
    rates = [f"{name} {rate / 1e12:.2f} TB/s" if "gemm" not in name else f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in report["ceilings"].items()]
    return [
        f"### {m['gpu'] or 'A GPU without a name'}",
        "",
        f"{size}driver {m['driver']}, CUDA {m['cuda']}; {m['cores']} cores of {m['cpu']}; {m['date']}{commit}. "
        f"Clocks before: {clocks(m.get('before'))}; after: {clocks(m.get('after'))}.",
        "",
        f"Ceilings of the same run: {', '.join(rates) or 'none measured'}.",
        "",
    ]


def peer(name, p):
    if "ratio" not in p:
        return f"{name}: failed"
    differs = ", **other results**" if p.get("differs") else ""
    return f"{name} **{p['ratio']:.2f}** [{p['ratio_low']:.2f}, {p['ratio_high']:.2f}]{differs}"


def cell(row):
    micro = {name: f"{seconds * 1e6:.4g}" for name, seconds in row["ours"].items()}
    rate = f"{row['rate'] / 1e12:.0f} TFLOP/s" if row["flops"] else f"{row['rate'] / 1e9:.0f} GB/s"
    rate = rate if row["rate"] else "-"
    share = f"{100 * row['share']:.0f} % of {row['ceiling']}" if row["share"] is not None else ""
    peers = "; ".join(peer(name, p) for name, p in row["peers"].items()) or "-"
    return f"| {row['case']} | {micro['median']} [{micro['p20']}, {micro['p80']}] | {rate} | {share} | {peers} |"


def section(report):
    lines = head(report)
    lines += ["| case | us a call, median [p20, p80] | rate | of ceiling | peer / ours, median of rounds [least, most] |", "|---|---|---|---|---|"]
    lines += [cell(row) for row in report["rows"]]
    every = [(row, name, p) for row in report["rows"] for name, p in row["peers"].items()]
    notes = [
        ("Where a peer is faster", [f"{row['case']}: {name} takes {100 * p['ratio']:.0f} % of our time" for row, name, p in every if p.get("ratio", 1) < 1]),
        ("Peers with other results than ours", [f"{row['case']}: {name}, by {p['error']:.1e}" for row, name, p in every if p.get("differs")]),
        ("Peers that did not run", [f"{row['case']}: {name}: {p['failed']}" for row, name, p in every if "failed" in p]),
        ("Cases of ours that failed", report["failed"]),
        ("Cases that the budget did not reach", report["skipped"]),
    ]
    for title, found in notes:
        lines += ["", f"{title}: none."] if not found else ["", f"{title}:", "", *(f"- {line}" for line in found)]
    return [*lines, "", "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".", ""]


def attempts(report, theirs):
    """Whole attempts at samples with a picture each, of equal lengths, beside those of transformers."""
    own = [(match, row) for row in report["rows"] if (match := re.fullmatch(ATTEMPTS, row["case"]))]
    if not own:
        return []
    match, row = own[0]
    ours = row["ours"]["median"] / int(match[1])
    lines = [f"Attempts ({row['case']}): ours {1e3 * ours:.1f} ms each.", "", "| transformers | ms an attempt | ratio |", "|---|---|---|"]
    lines += [f"| {r['case']} | {1e3 * r['with_vision']:.0f} | **{r['with_vision'] / ours:.1f}** |" for r in theirs["rows"]]
    return [*lines, ""]


def sections(folder):
    lines = []
    for path in sorted(Path(folder).glob("gpu-*.json")):
        report = json.loads(path.read_text())
        lines += section(report)
        theirs = path.with_name(path.name.replace("gpu-", "transformers-", 1))
        if theirs.exists():
            lines += attempts(report, json.loads(theirs.read_text()))
    return lines or ["No run is recorded yet."]


def self_check():
    figures = {"median": 1e-3, "p20": 9e-4, "p80": 2e-3}
    peers = {
        "faster": {"error": 1e-6, **figures, "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6},
        "another": {"error": 0.5, "differs": True, **figures, "ratio": 3.0, "ratio_low": 2.0, "ratio_high": 4.0},
        "broken": {"failed": "RuntimeError: no"},
    }
    row = {"case": "pool/gpu x/8/f32", "bytes": 10**9, "flops": 0, "ours": figures, "rate": 1e12, "ceiling": "read", "share": 0.5, "peers": peers}
    product = row | {"case": "cosine/gpu y/8/f16", "flops": 10**12, "rate": 1e15, "ceiling": None, "share": None, "peers": {}}
    state = {"clocks.sm": "1 MHz", "clocks.mem": "2 MHz", "temperature.gpu": "3", "power.draw": "4 W"}
    machine = {"gpu": "G", "driver": "1", "cuda": "2", "multiprocessors": 3, "l2_bytes": 5e7, "cpu": "C", "cores": 4, "before": state, "after": {}, "date": "D"}
    whole = row | {"case": "sample/gpu attempts 7B/4 x 4 x 40 tokens/bf16", "peers": {}, "rate": 0, "share": None}
    theirs = {"rows": [{"case": "hidden/static, 1 at once", "with_vision": 5e-3}]}
    report = {"machine": machine, "versions": {"torch": "9"}, "commit": "abc", "ceilings": {"read": 2e12, "gemm f16": 7e14}, "rows": [row, product, whole], "skipped": ["z"], "failed": []}
    with tempfile.TemporaryDirectory() as folder:
        assert sections(folder) == ["No run is recorded yet."]
        (Path(folder) / "gpu-g.json").write_text(json.dumps(report))
        (Path(folder) / "transformers-g.json").write_text(json.dumps(theirs))
        text = "\n".join(sections(folder))
    assert text.startswith("### G\n") and text.count("### G") == 1, text
    for part in [
        "| 1000 [900, 2000] | 1000 GB/s | 50 % of read | faster **0.50** [0.40, 0.60]; another **3.00** [2.00, 4.00], **other results**; broken: failed |",
        "| 1000 TFLOP/s |  | - |",
        "- pool/gpu x/8/f32: faster takes 50 % of our time",
        "- pool/gpu x/8/f32: another, by 5.0e-01",
        "- pool/gpu x/8/f32: broken: RuntimeError: no",
        "- z",
        "read 2.00 TB/s, gemm f16 700 TFLOP/s",
        "ours 0.2 ms each.",
        "| hidden/static, 1 at once | 5 | **20.0** |",
    ]:
        assert part in text, (part, text)
    print("the section of a made-up run is as it should be")


if __name__ == "__main__":
    self_check()

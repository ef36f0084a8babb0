#!/usr/bin/env python3
"""Captions ({"image_id", "caption"} a line) to rows of references without images, for a run with rho = 1.

    scripts/captions_to_references.py CAPTIONS.jsonl ROWS.jsonl [--limit 200] [--prompt TEXT]

A row is {"id", "prompt", "reference"}; captions are taken as they are. Needs only Python's own library.
"""

import argparse
import json
import pathlib
import sys

PROMPT = "Describe the image in detail."


def rows(captions, limit, prompt):
    """The first `limit` captions as rows; blank lines are passed over."""
    made, ids = [], set()
    for number, line in enumerate(captions.read_text(encoding="utf-8").split("\n"), 1):
        if len(made) == limit:
            break
        if not line.strip():
            continue
        try:
            caption = json.loads(line)
            name, text = str(caption["image_id"]), caption["caption"]
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{captions}: line {number}: expected an object with image_id and caption ({error!r})")
        if not isinstance(text, str) or not text.strip():
            sys.exit(f"{captions}: line {number}: caption is {text!r}, expected text")
        if name in ids:
            sys.exit(f"{captions}: line {number}: image_id {name} is there twice")
        ids.add(name)
        made.append({"id": name, "prompt": prompt, "reference": text})
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("captions", type=pathlib.Path, help="JSONL with image_id and caption")
    parser.add_argument("out", type=pathlib.Path, help="JSONL to write")
    parser.add_argument("--limit", type=int, default=200, help="rows at most (default 200)")
    parser.add_argument("--prompt", default=PROMPT, help=f"the question of every row (default: {PROMPT})")
    args = parser.parse_args()
    if args.limit < 1:
        parser.error(f"--limit is {args.limit}, expected at least 1")
    made = rows(args.captions, args.limit, args.prompt)
    if not made:
        sys.exit(f"{args.captions}: has no captions")
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    print(f"{len(made)} rows to {args.out}")


if __name__ == "__main__":
    main()

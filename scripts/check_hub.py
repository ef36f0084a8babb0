#!/usr/bin/env python3
"""Checks that `bdhs` and Hugging Face's own clients can use each other's cache, with a hub of ours on the loopback address.

    check_hub.py BDHS

The repository is tests/golden/encoders/roberta. Three caches: one that `bdhs embed` fills and sentence-transformers reads offline, one
that sentence-transformers fills, and one that snapshot_download fills; `bdhs embed` must use the last two without a request. Vectors
must agree within 2e-6. Needs sentence-transformers.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

REPO, COMMIT = "tiny/roberta", "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
SOURCE = Path(__file__).resolve().parent.parent / "tests/golden/encoders/roberta"
FILES = {str(path.relative_to(SOURCE)): path.read_bytes() for path in SOURCE.rglob("*") if path.is_file()}
FILES |= {".gitattributes": b"", "README.md": b"# tiny"}
TEXTS = ["A red bus stands at the corner.", "", "Two dogs."]
ENCODE = """
import sys, numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("tiny/roberta", device="cpu")
np.save(sys.argv[1], model.encode(%r))
""" % (TEXTS,)
SNAPSHOT = "from huggingface_hub import snapshot_download; snapshot_download('tiny/roberta')"


class Hub(BaseHTTPRequestHandler):
    asked = []

    def do_HEAD(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        api = f"/api/models/{REPO}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            document = {"id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                        "siblings": [{"rfilename": name} for name in FILES]}
            return self.answer(json.dumps(document).encode(), {})
        if path.startswith(f"{api}/tree/"):
            return self.answer(json.dumps([self.entry(name) for name in FILES]).encode(), {})
        for revision in ("main", COMMIT):
            name = path.removeprefix(f"/{REPO}/resolve/{revision}/")
            if name in FILES:
                etag = hashlib.sha256(FILES[name]).hexdigest()
                linked = name.endswith(".safetensors")
                headers = {"ETag": f'"{etag if linked else etag[:40]}"'}
                return self.answer(FILES[name], headers | ({"X-Linked-Size": str(len(FILES[name]))} if linked else {}))
        self.answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)

    do_GET = do_HEAD

    def entry(self, name):
        digest = hashlib.sha256(FILES[name]).hexdigest()
        entry = {"type": "file", "path": name, "size": len(FILES[name]), "oid": digest[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": digest, "size": len(FILES[name]), "pointerSize": 134}
        return entry

    def answer(self, body, headers, status=200):
        self.send_response(status)
        for key, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    bdhs = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    folder = Path(tempfile.mkdtemp())
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))

    def run(cache, command, offline=False):
        variables = {"HF_HOME": str(folder / cache), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                     "HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1"}
        Hub.asked.clear()
        done = subprocess.run([str(part) for part in command], env=os.environ | variables, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{command[0]} failed on the cache {cache}: {done.stderr}")
        return done.stderr

    def python(cache, offline=False):
        out = folder / f"{cache}.python.npy"
        run(cache, [sys.executable, "-c", ENCODE, out], offline)
        return np.load(out)

    def ours(cache, offline=False):
        out = folder / f"{cache}.bdhs.npy"
        warnings = run(cache, [bdhs, "--quiet", "embed", "--encoder", REPO, "--input", texts, "--output", out], offline)
        if warnings:
            sys.exit(f"on the cache {cache}, bdhs warns: {warnings}")
        return np.load(out)

    first = ours("bdhs")
    print(f"bdhs fetched with {len(Hub.asked)} requests")
    worst = [np.abs(first - python("bdhs", offline=True)).max()]
    worst.append(np.abs(first - python("sentence-transformers")).max())
    run("snapshot_download", [sys.executable, "-c", SNAPSHOT])
    for cache in ("sentence-transformers", "snapshot_download"):
        for offline in (True, False):
            worst.append(np.abs(first - ours(cache, offline)).max())
            if Hub.asked:
                sys.exit(f"on the cache of {cache}, bdhs asked for {Hub.asked}")
        print(f"cache of {cache}: no request, no warning")
    print(f"vectors differ by at most {max(worst):.1e}")
    sys.exit(int(max(worst) > 2e-6))


main()

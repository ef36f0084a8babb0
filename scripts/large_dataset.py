"""Makes data sets of RLAIF-V's shape and measures how they are listed.

    python scripts/large_dataset.py BDHS FOLDER [ROWS] [--odd]

Writes FOLDER/large (ROWS rows, by default 83,000, about 25 KB of picture each) and FOLDER/small (a tenth of them) as Parquet files of at
most 1,000 rows a row group, unless they are there, and runs `BDHS doctor --data` on both. Says the seconds, the peak of resident memory
and the ratio of both peaks. With --odd, one row of 100 is of no use, in four ways, and the counts must be those that were planted. Needs
pyarrow and pillow.
"""

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FILE_ROWS = 8_300
GROUP_ROWS = 1_000


def pictures(count, draw):
    """JPEGs of noise, so that they are as large as photographs of more pixels."""
    made = []
    for _ in range(count):
        image = Image.frombytes("RGB", (160, 160), draw.randbytes(160 * 160 * 3))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def rows(first, count, pool, odd):
    columns = {"image": [], "question": [], "chosen": [], "rejected": [], "origin_dataset": [], "idx": []}
    planted = {}
    for i in range(first, first + count):
        # Behind the end of the picture, so that every row's bytes differ.
        data = pool[i % len(pool)] + i.to_bytes(8, "little")
        question, chosen = f"What is in picture {i}?", f"Picture {i} shows a street. " + "A person walks by. " * 25
        path = f"pictures/{i}.jpg"
        if odd and i % 100 == 37:
            reason = ["missing_picture", "blank", "picture_count", "malformed"][i // 100 % 4]
            planted[reason] = planted.get(reason, 0) + 1
            match reason:
                case "missing_picture":
                    data = None
                case "blank":
                    chosen = "  "
                case "picture_count":
                    question = "<image> and <image>?"
                case "malformed":
                    chosen = "An <image>."
        columns["image"].append({"bytes": data, "path": path})
        columns["question"].append(question)
        columns["chosen"].append(chosen)
        columns["rejected"].append(chosen.replace("street", "beach"))
        columns["origin_dataset"].append("noise")
        columns["idx"].append(i)
    return columns, planted


def write(folder, count, odd):
    planted_file = folder / "planted.txt"
    if planted_file.is_file():
        return json.loads(planted_file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    pool, planted = pictures(200, random.Random(7)), {}
    schema = pa.schema([
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *[(name, pa.string()) for name in ["question", "chosen", "rejected", "origin_dataset"]], ("idx", pa.int64()),
    ])
    for number, first in enumerate(range(0, count, FILE_ROWS)):
        with pq.ParquetWriter(folder / f"train-{number:05}.parquet", schema, compression="snappy") as out:
            for start in range(first, min(count, first + FILE_ROWS), GROUP_ROWS):
                size = min(GROUP_ROWS, count - start, first + FILE_ROWS - start)
                columns, own = rows(start, size, pool, odd)
                out.write_table(pa.table(columns, schema=schema))
                for reason, n in own.items():
                    planted[reason] = planted.get(reason, 0) + n
    planted_file.write_text(json.dumps(planted))
    return planted


def listed(program, folder):
    """Seconds, peak of resident memory in bytes, and what is said of the data."""
    begun = time.monotonic()
    command = [program, "--json", "--quiet", "doctor", "--skip-bad", "--data", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    # The system's own figure for a finished process would count this one's memory, which it was forked from.
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
        if lines and name == Path(program).name[:15]:
            peak = max(peak, int(lines[0].split()[1]) * 1024)
        time.sleep(0.002)
    assert process.returncode == 0, (command, process.returncode)
    return time.monotonic() - begun, peak, json.loads(process.stdout.read())["data"]


def main():
    arguments = [word for word in sys.argv[1:] if word != "--odd"]
    odd = "--odd" in sys.argv
    program, folder = arguments[0], Path(arguments[1])
    count = int(arguments[2]) if len(arguments) > 2 else 83_000
    peaks = []
    for name, size in [("small", count // 10), ("large", count)]:
        place = folder / (name + ("-odd" if odd else ""))
        planted = write(place, size, odd)
        seconds, peak, data = listed(program, place)
        stored = sum(file.stat().st_size for file in place.glob("*.parquet"))
        peaks.append(peak)
        print(f"{name}: {size} rows, {stored / 1e6:.0f} MB: listed in {seconds:.1f} s, peak {peak / 1e6:.1f} MB")
        assert data["rows"] == size, data
        assert data["skipped"] == planted, (data["skipped"], planted)
    print(f"peak of large / small: {peaks[1] / peaks[0]:.3f}" + ("; odd rows counted as planted" if odd else ""))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes tests/golden/llava/shapes.json and pictures.json: images of many shapes and kinds as transformers sees them.

    python scripts/golden_images.py

shapes.json: aspect ratios from 1:6 to 6:1, odd sizes and single pixels, through the processors of LLaVA-1.5 (crop, and
padded to a square) and of LLaVA-1.6 (the released resolutions, and a list of our own): tiles, chosen resolution,
tokens, and checksums of the 8-bit values behind the normalised ones, with a few values themselves. And, for more sizes,
tiles, resolution and tokens alone. pictures.json: small files of every mode and orientation, byte for byte, beside
the pixels of transformers' load_image. Made with transformers 5.23 and Pillow 13.
"""

import io
import json
import pathlib
import tempfile

import golden_llava as golden
import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import load_image

FOLDER = pathlib.Path(__file__).parent.parent / "tests/golden/llava"
CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
RELEASED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
OWN = [[336, 336], [336, 1344], [1344, 336], [672, 1008], [1008, 672], [336, 2016]]
PROCESSORS = {
    "clip": ("clip", CLIP),
    "llava": ("llava", CLIP | {"do_pad": True}),
    "next": ("next", CLIP | {"image_grid_pinpoints": RELEASED}),
    "next, own list": ("next", CLIP | {"image_grid_pinpoints": OWN}),
}
CLASSES = {
    "clip": golden.CLIPImageProcessorPil,
    "llava": golden.LlavaImageProcessorPil,
    "next": golden.LlavaNextImageProcessorPil,
}
# width, height: 1:6, 1:5, 1:4, 1:3, 1:2, 3:4, 4:3, 2:1, 3:1, 4:1, 5:1, 6:1, about; then single pixels and lines.
SHAPES = [(101, 607), (131, 653), (151, 603), (211, 635), (333, 667), (407, 543), (543, 407), (667, 333), (635, 211),
          (603, 151), (653, 131), (607, 101), (1, 1), (2, 1), (1, 5)]
COUNTED = [(w * s // 4, h * s // 4) for w, h in SHAPES[:12] for s in (1, 3, 5, 9, 14)]
COUNTED += [(337, 336), (336, 337), (672, 336), (671, 337), (1008, 337), (1344, 1344), (3000, 499), (17, 100)]


def layout(proc, settings, w, h):
    """Tiles, chosen resolution (none for 1.5) and tokens."""
    tokens = proc._get_num_multimodal_tokens(image_sizes=[(h, w)]).num_image_tokens[0]
    pinpoints = settings.get("image_grid_pinpoints")
    if pinpoints is None:
        return {"tiles": 1, "best": None, "tokens": int(tokens)}
    best = [int(x) for x in select_best_resolution((h, w), pinpoints)]
    return {"tiles": 1 + best[0] // 336 * (best[1] // 336), "best": best, "tokens": int(tokens)}


def shapes():
    tok = Tokenizer.from_file(str(FOLDER / "llava15" / "tokenizer.json"))
    hf = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    rows = []
    for kind, settings in PROCESSORS.values():
        cls = LlavaNextProcessor if kind == "next" else LlavaProcessor
        proc = cls(CLASSES[kind](**settings), hf, patch_size=14, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1)
        for w, h in SHAPES:
            case = golden.pixel_case(kind, CLASSES[kind], settings, w, h)
            wanted = layout(proc, settings, w, h)
            assert wanted["tiles"] == case["tiles"], (case, wanted)
            rows.append(case | wanted)
        counted = [[w, h, *layout(proc, settings, w, h).values()] for w, h in COUNTED]
        rows.append({"processor": kind, "settings": settings, "counted": counted})
    (FOLDER / "shapes.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


def files():
    """Name and bytes of small files: modes, then orientations."""
    image = golden.picture(13, 7)
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray((np.arange(91) * 28 % 256).astype(np.uint8).reshape(7, 13)))
    palette = image.quantize(9, dither=Image.Dither.NONE)
    grey = image.convert("L")
    yield "grey.png", save(grey, "PNG")
    yield "grey_alpha.png", save(rgba.convert("LA"), "PNG")
    yield "alpha.png", save(rgba, "PNG")
    yield "palette.png", save(palette, "PNG")
    yield "palette_transparent.png", save(palette, "PNG", transparency=3)
    yield "palette_16.png", save(image.quantize(16, dither=Image.Dither.NONE), "PNG", bits=4)
    yield "grey_transparent.png", save(grey, "PNG", transparency=int(np.asarray(grey)[0, 0]))
    yield "bits.png", save(grey.convert("1", dither=Image.Dither.NONE), "PNG")
    yield "palette.gif", save(palette, "GIF")
    yield "palette_transparent.gif", save(palette, "GIF", transparency=3)
    yield "colour.webp", save(image, "WEBP", lossless=True)
    yield "alpha.webp", save(rgba, "WEBP", lossless=True, exact=True)
    yield "colour.bmp", save(image, "BMP")
    yield "palette.bmp", save(palette, "BMP")
    yield "grey.bmp", save(grey, "BMP")
    yield "colour.tiff", save(image, "TIFF", compression="tiff_lzw")
    yield "grey.tiff", save(grey, "TIFF")
    yield "alpha.tiff", save(rgba, "TIFF")
    yield "pixel.png", save(golden.picture(1, 1), "PNG")
    yield "pixel_alpha.png", save(rgba.crop((3, 2, 4, 3)), "PNG")
    exif = Image.Exif()
    for n in range(1, 9):
        exif[0x0112] = n
        yield f"turned{n}.png", save(image, "PNG", exif=exif)
        yield f"turned{n}.webp", save(image, "WEBP", lossless=True, exif=exif)
        yield f"turned{n}.tiff", save(image, "TIFF", tiffinfo={0x0112: n})
        # Blocks of one colour, which every decoder reads alike up to a unit or two.
        flat = Image.fromarray(np.asarray(golden.picture(4, 2)).repeat(8, 0).repeat(8, 1))
        yield f"turned{n}.jpeg", save(flat, "JPEG", quality=95, subsampling=0, exif=exif)


def save(image, form, **settings):
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def pictures():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files():
            path = pathlib.Path(folder) / name
            path.write_bytes(data)
            image = load_image(str(path))
            assert image.mode == "RGB"
            rows.append({"name": name, "width": image.width, "height": image.height, "file": data.hex(),
                         "rgb": np.asarray(image).tobytes().hex()})
    (FOLDER / "pictures.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    shapes()
    pictures()

"""Inputs of fuzz.py: valid ones of each format, and mutations that know the structure of the files."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mask2former.utils.label_maps import write_segment_ids

Files = dict[str, bytes]  # by path in the folder of an input

# --- values that parsers may not expect ---

NUMBERS = [0, -1, 1, 2, 255, 256, 65536, 2**31, -(2**31), 2**32, 2**63, 10**30, 10**400]
FLOATS = [0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    "",
    "0",
    "1",
    "a" * 5000,
    "\x1b[31m\n\r",
    "\u202e\ud800",
    "../../etc/passwd",
    "/dev/zero",
    "\0",
    "é😀",
]
OTHERS = [None, True, False, [], {}, [[]], [{}], {"": None}, [[[[[]]]]]]
VALUES = [*NUMBERS, *FLOATS, *TEXTS, *OTHERS]


def odd_value(rng: random.Random) -> Any:
    """Return a value of any type, sometimes deeply nested or repeated."""
    value = copy.deepcopy(rng.choice(VALUES))
    if rng.random() < 0.05:
        for _ in range(rng.choice((10, 900, 3000))):
            value = [value]
    return [value] * rng.choice((1, 3, 1000)) if rng.random() < 0.1 else value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each value in nested lists and dicts."""
    pending = [value]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            if isinstance(container[key], (dict, list)):
                pending.append(container[key])


def change_values(content: Any, rng: random.Random) -> Any:
    """Return a copy with some values replaced, removed, repeated, swapped or turned into text."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        found = list(places(content)) if isinstance(content, (dict, list)) else []
        if not found or rng.random() < 0.02:
            return odd_value(rng)
        container, key = rng.choice(found)
        match rng.randrange(6):
            case 0 | 1:
                container[key] = odd_value(rng)
            case 2:
                del container[key]
            case 3 if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case 4:
                other, other_key = rng.choice(found)
                if other_key in (other if isinstance(other, dict) else range(len(other))):
                    container[key] = copy.deepcopy(other[other_key])
            case _:
                value = container[key]
                container[key] = float(value) if type(value) is int else str(value)[:200]
    return content


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them replaced, removed, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(5):
            case 0:
                changed[at : at + size] = rng.randbytes(size)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 500))
            case 3:
                changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS) & 0xFFFFFFFF)
            case _:
                del changed[at:]
    return bytes(changed)


# --- mutations by the kind of file ---


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON; NaN, infinity and huge numbers are written as Python does."""
    if rng.random() < 0.15:
        return change_bytes(data, rng)
    return json.dumps(change_values(json.loads(data), rng)).encode(errors="surrogatepass")


YAML_PIECES = [
    *("&a", "*a", "<<: *a", "!!python/object/apply:os.system ['true']", "!!binary x", "!!set {a}", "? - a"),
    *("!!python/object/apply:eval ['2 ** 9 ** 9']", "!!float x", "!!int ''", "2001-99-99", "!!timestamp 1"),
    *("0x", "1_000", "190:20:30", "---", "...", "- - - -", "{" * 3000, "[" * 50, "\t", "|", ">", "%YAML 9.9"),
    *("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]", "_BASE_: x.yaml", "_BASE_: [., ..]"),
]


def change_yaml(data: bytes, rng: random.Random) -> bytes:
    """Change values, lines or bytes of a YAML."""
    if rng.random() < 0.4:
        return yaml.safe_dump(change_values(yaml.safe_load(data), rng)).encode(errors="surrogatepass")
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(lines))
        key, mark, _ = lines[at].partition(":")
        piece = rng.choice(YAML_PIECES)
        lines[at : at + rng.randrange(2)] = [
            rng.choice((piece, f"{key}{mark} {piece}", f"{lines[at]} {piece}"))
        ]
    return "\n".join(lines).encode()


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Change lines, words or bytes of a text."""
    if rng.random() < 0.5:
        return change_bytes(data, rng)
    words = re.split(rb"([\s,]+)", data)
    for _ in range(rng.choice((1, 2, 4))):
        words[rng.randrange(len(words))] = str(odd_value(rng))[:5000].encode(errors="surrogatepass")
    return b"".join(words)


def change_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG, and set its checksum right; or any bytes, as of other formats."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.2:
        return change_bytes(data, rng)
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(change_bytes(zlib.decompress(body), rng))
    else:
        body = change_bytes(body, rng)
    chunks[which] = (rng.choice((kind, kind, kind, b"zTXt", b"tRNS", b"eXIf", b"PLTE", b"iCCP")), body)
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(parts)


def change_zip(data: bytes, rng: random.Random) -> bytes:
    """Change a member of a zip archive, its name or its compression; or any bytes."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    which = rng.randrange(len(members))
    name, body = members[which]
    members[which] = (change_bytes(name.encode(), rng).decode("latin1") if rng.random() < 0.1 else name, body)
    if rng.random() < 0.9:
        members[which] = (members[which][0], change_bytes(body, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, body in members:
            archive.writestr(name or "x", body)
    return out.getvalue()


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, and its size; or any bytes."""
    (size,) = struct.unpack_from("<Q", data)
    header = change_json(data[8 : 8 + size], rng)
    size = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", size) + header + data[8 + size :]


def change_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change values in a pickle of plain values and arrays; or any bytes."""
    if rng.random() < 0.6:
        return change_bytes(data, rng)
    return pickle.dumps(change_values(pickle.loads(data), rng), protocol=rng.randrange(6))


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": change_json,
    ".yaml": change_yaml,
    ".png": change_png,
    ".pth": change_zip,
    ".pkl": change_pickle,
    ".safetensors": change_safetensors,
    ".txt": change_text,
    ".csv": change_text,
}


# --- valid inputs ---


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    """Return what a function writes."""
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def image_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image in a format of Pillow's."""
    return saved(lambda out: image.save(out, kind, **options))


PHOTO = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
LABELS = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) % 3)
RLE = {"size": [8, 12], "counts": [10, 20, 66]}
COMPRESSED = {"size": [8, 12], "counts": ":d0R2"}
POLYGON = [[1.0, 1.0, 8.0, 1.0, 8.0, 6.5, 1.0, 6.5]]
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 7, "name": "sky", "isthing": 0},
]


def instance_json() -> Any:
    """Return the content of an instance JSON with each form of mask."""
    row = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 20.0, "bbox": [1, 1, 7, 5]}
    masks = [POLYGON, RLE, COMPRESSED, POLYGON[0], [[[1, 1], [8, 1], [8, 6]]], [RLE, RLE]]
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 12}]
    annotations = [{"id": i, **row, "segmentation": mask} for i, mask in enumerate(masks, 1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
        "info": {},
        "licenses": [],
    }


def instance_seeds() -> list[Files]:
    """Return COCO instances, and results of a model for them."""
    results = [{"image_id": 1, "category_id": 1, "segmentation": COMPRESSED, "score": 0.5}]
    files = {"set.json": instance_json(), "results.json": results}
    return [
        {"images/a.png": image_bytes(PHOTO), **{name: json.dumps(c).encode() for name, c in files.items()}}
    ]


def video_seeds() -> list[Files]:
    """Return a video of three frames with two tracks, and results of a model for it."""
    names, tracks = ["v/a.png", "v/b.png", "v/c.png"], [[POLYGON, None, RLE], [COMPRESSED, [], RLE]]
    row = {"video_id": 1, "category_id": 1, "iscrowd": 0, "areas": [20, None, 2.0], "bboxes": [None] * 3}
    content = {
        "videos": [{"id": 1, "file_names": names, "height": 8, "width": 12, "length": 3}],
        "annotations": [{"id": i, **row, "segmentations": masks} for i, masks in enumerate(tracks)],
        "categories": CATEGORIES,
    }
    results = [{**row, "score": 0.5, "segmentations": [COMPRESSED, None, COMPRESSED]}]
    files = {"set.json": json.dumps(content).encode(), "results.json": json.dumps(results).encode()}
    return [{**files, **{f"images/{name}": image_bytes(PHOTO) for name in names}}]


def panoptic_seeds() -> list[Files]:
    """Return COCO's panoptic JSON with a PNG of segment ids."""
    ids = np.repeat([[1, 1, 1, 300, 300, 300, 0, 0, 70000, 70000, 70000, 70000]], 8, axis=0)
    segments = [
        {"id": 1, "category_id": 1, "iscrowd": 0, "area": 24, "bbox": [0, 0, 3, 8]},
        {"id": 300, "category_id": 7, "iscrowd": 0, "area": 24},
        {"id": 70000, "category_id": 1, "iscrowd": 1, "area": 32},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 12}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_segment_ids(f"{folder}/a.png", ids)
        png = Path(folder, "a.png").read_bytes()
    return [{"images/a.png": image_bytes(PHOTO), "set/a.png": png, "set.json": json.dumps(content).encode()}]


def folder_seeds() -> list[Files]:
    """Return a folder of labelme's JSONs, one of YOLO's labels and one of label PNGs."""
    mask = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNk+M/A+B8ABQoCAYuOd0YAAAAASUVORK5CYII="
    kinds = {"polygon": [[1, 1], [8, 1], [8, 6]], "rectangle": [[1, 1], [8, 6]], "circle": [[4, 4], [4, 6]]}
    shapes = [{"label": "cat", "points": p, "shape_type": kind, "group_id": 3} for kind, p in kinds.items()]
    shapes.append({"label": "dog", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": mask})
    labelme = {"shapes": shapes, "imagePath": "a.png", "imageHeight": 8, "imageWidth": 12, "imageData": None}
    images = {"images/a.png": image_bytes(PHOTO)}
    yolo = b"0 0.1 0.1 0.9 0.1 0.9 0.9\n1 0.5 0.5 0.2 0.2\n1 .1 .1 .2 .2 .1 .3 .1 .1\n"
    names = b"path: .\ntrain: images\nnames:\n  0: cat\n  1: dog\n"
    return [
        {**images, "set/a.json": json.dumps(labelme).encode()},
        {**images, "set/a.txt": yolo, "set/data.yaml": names},
        {**images, "set/a.png": image_bytes(LABELS)},
    ]


def image_seeds() -> list[Files]:
    """Return images, label maps and panoptic PNGs of several formats."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)
    images = {
        "file.png": [image_bytes(PHOTO), image_bytes(LABELS.convert("P"), bits=2), image_bytes(wide)],
        "file.jpg": [image_bytes(PHOTO, "JPEG", exif=exif)],
        "file.tif": [image_bytes(wide, "TIFF"), image_bytes(PHOTO, "TIFF", compression="tiff_deflate")],
        "file.webp": [image_bytes(PHOTO, "WEBP")],
        "file.gif": [image_bytes(LABELS.convert("P"), "GIF")],
        "file.bmp": [image_bytes(PHOTO, "BMP")],
        "file.ppm": [image_bytes(PHOTO, "PPM")],
    }
    return [{name: content} for name, contents in images.items() for content in contents]


def classes_seeds() -> list[Files]:
    """Return files of classes in each format."""
    files = {
        "file.txt": [b"cat\ndog\nsky\n", b"0 cat\n7 dog\n255 ignore\n", b"__ignore__\n_background_\ncat\n"],
        "file.csv": [b"id,name\n0,cat\n1,dog\n"],
        "file.json": [
            json.dumps(c).encode() for c in (["cat", "dog"], {"0": "cat"}, {"categories": CATEGORIES})
        ],
        "file.yaml": [b"path: .\ntrain: images\nnames:\n  0: cat\n  1: dog\n", b"- cat\n- dog\n"],
    }
    return [{name: content} for name, contents in files.items() for content in contents]


def mutated(files: Files, rng: random.Random) -> Files:
    """Return an input with one of its files changed, rarely two."""
    changed = dict(files)
    for name in rng.sample(sorted(files), min(len(files), rng.choice((1, 1, 1, 2)))):
        changed[name] = CHANGES.get(Path(name).suffix, change_bytes)(files[name], rng)
    return changed

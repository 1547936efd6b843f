"""Request bodies that no honest client sends: damaged, lying, exploding, of the wrong kind.

Every body comes from a seed, so that a failure can be looked at again by its name.
"""

import base64
import functools
import gzip
import io
import itertools
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from pictures import encoded
from PIL import Image

DETECT, BATCH = "/v1/detect", "/v1/detect/batch"
TORCHSERVE, DEEPSTACK = "/predictions/tiny", "/v1/vision/detection"
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP")
BOUNDARY = "boundary-7d1"


@dataclass(frozen=True)
class Hostile:
    """One request; `name` says how it was made."""

    name: str
    body: bytes
    path: str = DETECT
    headers: dict[str, str] = field(
        default_factory=lambda: {"Content-Type": "application/octet-stream"}
    )


@functools.cache
def all_hostile(seed: int) -> tuple[Hostile, ...]:
    """More than 2,000 of them, shuffled."""
    rng = random.Random(seed)
    made = itertools.chain(
        truncated(), flipped(rng), lying_headers(), bombs(), wrong_types(),
        broken_forms(rng), broken_json(rng), strange_headers(), wrong_tails(rng),
    )  # fmt: skip
    found = list(made)
    rng.shuffle(found)
    return tuple(found)


@functools.cache
def whole(kind: str, width: int = 60, height: int = 40) -> bytes:
    rng = np.random.default_rng(3)
    return encoded(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), kind)


def form(data: bytes, field_name: str = "image", **options: str) -> bytes:
    lines = []
    for name, value in options.items():
        lines.append(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        )
        lines.append(value.encode() + b"\r\n")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field_name}"; filename="a"\r\n'
    return b"".join([*lines, head.encode(), b"\r\n", data, f"\r\n--{BOUNDARY}--\r\n".encode()])


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}


def truncated() -> Iterator[Hostile]:
    """Every format, cut at every sixteenth, sent in each way."""
    for kind, part in itertools.product(FORMATS, range(16)):
        data = whole(kind)
        cut = data[: len(data) * part // 16]
        name = f"{kind} cut at {part}/16"
        yield Hostile(f"{name}, raw", cut)
        yield Hostile(f"{name}, form", form(cut), headers=FORM)
        yield Hostile(f"{name}, batch", form(cut, "images"), BATCH, FORM)
        yield Hostile(f"{name}, torchserve", cut, TORCHSERVE)
        yield Hostile(f"{name}, deepstack", form(cut), DEEPSTACK, FORM)
        text = base64.b64encode(cut).decode()
        yield Hostile(f"{name}, json", json.dumps({"image": {"b64": text}}).encode(), headers=JSON)


def flipped(rng: random.Random) -> Iterator[Hostile]:
    """One to eight bits flipped, half of the time within the headers."""
    for kind, number in itertools.product(FORMATS, range(140)):
        data = bytearray(whole(kind))
        reach = min(len(data), 200) if number % 2 else len(data)
        for _ in range(1 + number % 8):
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        yield Hostile(f"{kind} flipped, number {number}", bytes(data))


def png(width: int, height: int, depth: int, colour: int, data: bytes, *more: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(part[:4], part[4:]) for part in more)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )  # fmt: skip


SIDES = (0, 1, 40, 16_384, 16_385, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


def lying_headers() -> Iterator[Hostile]:
    """Sizes, depths and types that are not those of the data."""
    some = zlib.compress(bytes(5000))
    for width, height in itertools.product(SIDES, SIDES):
        yield Hostile(f"PNG says {width}x{height}", png(width, height, 8, 2, some))
        bmp = bytearray(whole("BMP"))
        bmp[18:26] = struct.pack("<II", width, height)
        yield Hostile(f"BMP says {width}x{height}", bytes(bmp))
    for depth, colour in itertools.product((0, 1, 2, 3, 4, 8, 16, 255), range(8)):
        yield Hostile(f"PNG depth {depth} colour {colour}", png(40, 30, depth, colour, some))
    for at, value in itertools.product((10, 14, 26, 28, 30, 34, 46), (0, 1, 4, 77, 0xFFFF)):
        bmp = bytearray(whole("BMP"))
        bmp[at : at + 2] = struct.pack("<H", value)
        yield Hostile(f"BMP byte {at} is {value}", bytes(bmp))
    for size in ((0, 0), (1, 2**24 - 1), (2**24 - 1, 2**24 - 1), (16_383, 16_383)):
        canvas = b"".join(side.to_bytes(3, "little") for side in size)
        chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + whole("WEBP")[12:]
        webp = b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk
        yield Hostile(f"WebP says {size}", webp)
    jpeg = whole("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for height, width in itertools.product((0, 1, 65_535), (0, 1, 65_535)):
        yield Hostile(
            f"JPEG says {width}x{height}",
            jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :],
        )
    avif = whole("AVIF")
    at = avif.index(b"ispe") + 8
    for width, height in itertools.product((0, 1, 65_535, 2**32 - 1), (0, 65_535, 2**31)):
        yield Hostile(
            f"AVIF says {width}x{height}",
            avif[:at] + struct.pack(">II", width, height) + avif[at + 8 :],
        )


def bombs() -> Iterator[Hostile]:
    """Little data that wants to become a lot."""
    for width, height in ((9600, 9600), (16_384, 900), (60_000, 60), (1999, 1999)):
        rows = zlib.compress(bytes((width + 1) * min(height, 2000)), 9)
        yield Hostile(f"PNG bomb {width}x{height}", png(width, height, 8, 0, rows))
    text = b"zTXtComment\0\0" + zlib.compress(bytes(20_000_000), 9)
    yield Hostile("PNG text bomb", png(40, 30, 8, 0, zlib.compress(bytes(41 * 30)), text))
    profile = b"iCCPicc\0\0" + zlib.compress(bytes(20_000_000), 9)
    yield Hostile("PNG profile bomb", png(40, 30, 8, 0, zlib.compress(bytes(41 * 30)), profile))
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (i % 256, i // 256, 0)) for i in range(1500)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    yield Hostile("APNG of 1500 frames", file.getvalue())
    jpeg = encoded(np.zeros((1000, 1500, 3), np.uint8), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield Hostile("JPEG of 2000 scans", jpeg[:-2] + scan * 2000 + jpeg[-2:])
    bomb = gzip.compress(bytes(40_000_000), 9, mtime=0)
    for coding, data in (
        ("gzip", bomb),
        ("gzip", gzip.compress(bomb, mtime=0)),
        ("gzip, gzip", gzip.compress(bomb, mtime=0)),
        ("deflate", zlib.compress(bytes(40_000_000), 9)),
        ("deflate", bomb),
    ):
        for kind in ("image/png", "application/json", FORM["Content-Type"]):
            yield Hostile(
                f"{coding} bomb of {len(data)} bytes, {kind}",
                data,
                headers={"Content-Type": kind, "Content-Encoding": coding},
            )
    yield Hostile("more bytes than allowed", bytes(3_000_000))
    yield Hostile("a form with more bytes than allowed", form(bytes(3_000_000)), headers=FORM)
    yield Hostile(
        "a thousand parts", b"".join([form(b"")[: -len(BOUNDARY) - 8]] * 1000), BATCH, FORM
    )
    yield Hostile("JSON nested deeply", b"[" * 500_000, headers=JSON)


MAGICS = (
    b"", b"\0", b"GIF89a", b"%PDF-1.7\n", b"PK\x03\x04", b"II*\0", b"MM\0*", b"8BPS", b"<svg/>",
    b"<?xml version='1.0'?><svg/>", b"<!doctype html>", b"text named photo.jpg", b"\x7fELF", b"MZ",
    b"%!PS-Adobe-3.0 EPSF-3.0\n", b"P6 9 9 255\n", b"\x1f\x8b\x08", b"BZh9", b"\xca\xfe\xba\xbe",
    b"RIFF\x10\0\0\0AVI ", b"RIFF\x10\0\0\0WEBP", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"BM",
    b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x80\x04K\x01.",
    b"\x93NUMPY\x01\0", b"import os", b"\0" * 100, b"\xff" * 100,
)  # fmt: skip


def wrong_types() -> Iterator[Hostile]:
    """Other files, and names that do not fit what is in them."""
    for magic, tail in itertools.product(MAGICS, (b"", bytes(300), bytes(range(256)) * 4)):
        yield Hostile(f"{magic!r} and {len(tail)} bytes", magic + tail)
    kinds = ("image/svg+xml", "image/png", "text/html", "application/pdf", "", "*/*", "a/b;c=d")
    for kind, data in itertools.product(kinds, (b"<svg/>", whole("PNG"), b"")):
        yield Hostile(f"{len(data)} bytes called {kind!r}", data, headers={"Content-Type": kind})


def broken_forms(rng: random.Random) -> Iterator[Hostile]:
    """Forms with pieces cut out, doubled, moved and made up."""
    for number in range(350):
        data = bytearray(form(whole("PNG", 8, 8), score="0.5"))
        for _ in range(1 + number % 4):
            at, length = rng.randrange(len(data) + 1), rng.randrange(1, 60)
            piece = bytes(data[at : at + length])
            match number % 5:
                case 0:
                    del data[at : at + length]
                case 1:
                    data[at:at] = piece * 3
                case 2:
                    data[at:at] = rng.choice([b"\r\n", b"--", BOUNDARY.encode(), b'"', b":", b"\0"])
                case 3:
                    data[at : at + length] = rng.randbytes(length)
                case 4:
                    del data[at:]
        path = BATCH if number % 3 else DETECT
        yield Hostile(f"form broken, number {number}", bytes(data), path, FORM)
    long = (
        b"--b\r\nContent-Disposition: form-data; name=" + b"a" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"
    )
    many = b"--b\r\n" + b"X: y\r\n" * 1000 + b"\r\nx\r\n--b--\r\n"
    for name, data in (("long name", long), ("many headers", many), ("empty", b"--b--\r\n")):
        yield Hostile(name, data, headers={"Content-Type": "multipart/form-data; boundary=b"})
    for boundary in ("", "=", "=b", '="b', "=" + "b" * 5000, "=b;boundary=c", "*=utf-8''b"):
        kind = f"multipart/form-data; boundary{boundary}"
        yield Hostile(f"boundary {boundary[:20]!r}", long, headers={"Content-Type": kind})


def broken_json(rng: random.Random) -> Iterator[Hostile]:
    """JSON with bytes changed, and well-formed JSON of other shapes."""
    text = json.dumps({"image": {"b64": base64.b64encode(whole("PNG", 8, 8)).decode()}, "max": 3})
    for number in range(250):
        data = bytearray(text.encode())
        for _ in range(1 + number % 5):
            data[rng.randrange(len(data))] = rng.choice(b'{}[]",:\\ 0aA=+/\x00\xff')
        yield Hostile(f"JSON broken, number {number}", bytes(data), headers=JSON)
    shapes = (
        None, 1, "x", [], {}, [[]], {"image": None}, {"image": []}, {"image": {"b64": None}},
        {"image": {"b64": "A" * 99}}, {"image": {"b64": "AAAA", "url": "file:///etc/passwd"}},
        {"images": [None]}, {"images": {"b64": "AAAA"}}, {"images": [{"b64": "AAAA"}] * 40},
        {"image": {"b64": "AAAA"}, "score": {}}, {"image": {"b64": "AAAA"}, "max": 1e308},
        {"image": {"b64": "AAAA"}, "classes": ["red", 1]}, {"": 1}, {"__proto__": {}},
        {"image": {"b64": "AAAA"}, "max": 10**400}, {"image": {"b64": "\ud800"}},
        {"image": {"b64": "AAAA"}, "score": "\ud800"}, {"image": {"b64": "AAAA"}, "\ud800": 1},
        {"image": {"b64": "AAAA"}, "format": "coco", "image_id": "\ud800"},
        {"image": {"b64": "AAAA"}, "classes": "\ud800"},
    )  # fmt: skip
    for shape, path in itertools.product(shapes, (DETECT, BATCH)):
        yield Hostile(f"JSON {str(shape)[:50]}", json.dumps(shape).encode(), path, JSON)


def strange_headers() -> Iterator[Hostile]:
    """A good image with headers and options that are not."""
    raw = {"Content-Type": "image/png"}
    image = whole("PNG")
    for name, values in {
        "Accept": ("text/html", "*/*;q=0", "image/gif", ",;,", "a" * 3000, "image/png;q=nan"),
        "Content-Encoding": ("br", "gzip", "x" * 3000, ",", "identity, identity", "GZIP"),
        "X-Request-Timeout-Ms": ("0", "-1", "1e9", "nan", "9" * 500),
        "X-Priority": ("", "high", "bulk,bulk"),
        "X-Request-ID": ("a" * 4000, "<script>", "a b"),
        "If-None-Match": ("*", '"', "," * 2000, 'W/"' + "0" * 32 + '"'),
        "traceparent": ("00-0-0-0", "ff" * 40),
        "Expect": ("100-continue", "200-ok"),
    }.items():
        for value in values:
            yield Hostile(f"{name}: {value[:30]}", image, headers=raw | {name: value})
    for query in (
        "score=", "score=nan", "score=1e999", "max=0", "max=99999999999999999999", "classes=",
        "classes=%00", "classes=" + "red," * 2000, "format=image&box_format=x",
        "image_id=" + "x" * 300,
        "format=coco", "%ff=%ff", "a" * 5000, "score=0.5&score=0.5", "&&&=&",
        "priority=%F0%9F%98%80",
        "classes=-1", "classes=%D9%A3", "iou=0x1", "box_format=XYXY", "format=yolo&format=coco",
    ):  # fmt: skip
        yield Hostile(f"?{query[:30]}", image, f"{DETECT}?{query}", raw)
    for model in (
        "x",
        "tiny/versions/0",
        "tiny/versions/" + "9" * 5000,
        "%2e%2e",
        "..%2f..",
        "%00",
    ):
        yield Hostile(f"model {model[:20]}", image, f"/v1/models/{model}/detect", raw)


def wrong_tails(rng: random.Random) -> Iterator[Hostile]:
    """Good beginnings that go on as something else."""
    for kind, other in itertools.product(FORMATS, FORMATS):
        a, b = whole(kind), whole(other)
        cut = rng.randrange(12, len(a))
        yield Hostile(f"{kind} then {other}", a[:cut] + b[rng.randrange(len(b)) :])
        yield Hostile(f"{kind} and all of {other}", a + b)

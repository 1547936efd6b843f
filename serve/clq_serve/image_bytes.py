"""What the bytes of an image file say about themselves, read without decoding a pixel.

Pillow's decoders are lenient or late on these points: a WebP decoder takes memory for its canvas
before its size is known to us, PNG checksums are not looked at, a JPEG may hold any number of scans
over the whole picture, and "truncated" is reported in a dozen ways.
"""

import zlib

ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP")
MAX_JPEG_SCANS = 256  # encoders write about 10; each one can cost the time of a whole picture

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = b"\xff\xda"  # cannot occur inside the coded data of a scan


def sniff_format(data: bytes) -> str | None:
    """Which of ACCEPTED_FORMATS the first bytes announce; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":  # ISO base media: major brand, minor version, compatible brands
        brands = data[8 : max(12, min(int.from_bytes(data[:4]), 256))]
        if any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4)):
            return "AVIF"
    if data.startswith(b"BM"):
        return "BMP"
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the canvas of a WebP file, pixels; None if its first chunk is damaged.

    Source: RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":  # flags and reserved 4 bytes, then both sides less one in 24 bits
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        sides = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        width, height = sides
        return width, height
    return None


def png_is_intact(data: bytes) -> bool:
    """Whether every chunk up to IEND is complete and has the checksum that it states."""
    view = memoryview(data)
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):  # length, type, ..., checksum: 4 bytes each
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 > len(data):
            return False
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def jpeg_has_too_many_scans(data: bytes) -> bool:
    """Whether decoding could take as long as that of hundreds of pictures."""
    return data.count(_START_OF_SCAN) > MAX_JPEG_SCANS


def ends_early(data: bytes, kind: str) -> bool:
    """Whether the container itself announces more bytes than there are."""
    if kind == "JPEG":
        return b"\xff\xd9" not in data[-64:]  # end of image; cameras append a few bytes to it
    if kind == "PNG":
        return b"IEND" not in data[-64:]
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    at = 0  # AVIF: a chain of boxes, each with its length in front
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if length < 8:  # 0: up to the end of the file; 1: 64 bits, which no real AVIF needs
            return False
        at += length
    return at != len(data)

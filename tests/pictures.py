"""Small image files for the tiny model of tests/serve/conftest.py."""

import io

import numpy as np
from PIL import Image


def cells(kind: str = "PNG", **options: object) -> bytes:
    """96 x 64: one red, one green and one blue cell of falling strength on black."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :32] = (255, 0, 0)
    pixels[:32, 32:64] = (0, 200, 0)
    pixels[:32, 64:] = (0, 0, 150)
    return encoded(pixels, kind, **options)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """(H, W, 3) uint8 pixels as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()

"""A tiny data set in COCO format that is made, not shipped: coloured boxes on grey, two classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def write_shapes(folder: Path, images: int = 4, side: int = 128, seed: int = 0) -> Path:
    """Writes `annotations.json` and `images/` and returns the folder; category ids are 3 and 7."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    tree: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
    }
    for number in range(images):
        pixels = np.full((side, side, 3), 128, np.uint8)
        for _ in range(3):
            w, h = rng.integers(16, side // 2, 2)
            x, y = rng.integers(0, side - w), rng.integers(0, side - h)
            category = int(rng.choice([3, 7]))
            pixels[y : y + h, x : x + w] = COLOURS["red" if category == 3 else "blue"]
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": category,
                    "bbox": [int(x), int(y), int(w), int(h)],
                    "area": int(w * h),
                    "iscrowd": 0,
                }
            )
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        tree["images"].append({"id": number + 1, "file_name": name, "width": side, "height": side})
    (folder / "annotations.json").write_text(json.dumps(tree))
    return folder


def shapes_tree(folder: Path) -> dict[str, Any]:
    """A small, complete configuration for that folder, as parse_config takes it."""
    split = {"annotations": "annotations.json", "images": "images"}
    return {
        "name": "shapes",
        "data": {
            "root": str(folder),
            "splits": {"train": split, "val": split},
            "classes": ["red", "blue"],
        },
        "input": {"shorter_px": 128, "longer_px": 256, "upscale": False},
        "augment": {"crop_px": 128, "scale": [0.9, 1.1], "flip": 0.5},
        "model": {
            "backbone": {"name": "regnet_nano"},
            "neck": {"channels": 32, "extra_levels": 1},
            "head": {
                "channels": 32,
                "tower_depth": 1,
                "norm": "batch",
                "anchor_scale": 4,
                "qfl": True,
                "lqe": True,
                "align": True,
            },
            "candidates_per_level": 50,
            "candidates": 100,
        },
        "schedule": {
            "steps": 6,
            "batch": 2,
            "optimizer": "adamw",
            "lr": 0.002,
            "weight_decay": 0.01,
            "decay": "cosine",
            "warmup_steps": 2,
            "clip_norm": 10,
            "ema": 0.9,
        },
        "run": {"workers": 0, "checkpoint_every": 3},
    }

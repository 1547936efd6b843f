"""The files that training reads: COCO annotations of each split; SOURCES.md with the licences."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from clq_train.webui.build import records, write_whole
from clq_train.webui.labels import CLASS_OF, CLASSES
from clq_train.webui.sources import SPLITS, Family, all_packages


def write(out: Path, families: list[Family], seed: int) -> dict[str, int]:
    """train.json, val.json, test.json and SOURCES.md from the records; images of each split."""
    by_name = {f.name: f for f in families}
    trees = {split: _tree(split, seed) for split in SPLITS}
    for record in records(out):
        family = by_name.get(record["job"]["family"])
        if family is not None:
            for view in record["views"]:
                if "file" in view:
                    _append(trees[family.split], family, record["job"], view)
    for split, tree in trees.items():
        write_whole(out / f"{split}.json", json.dumps(tree, separators=(",", ":")).encode())
    used = [
        f
        for f in families
        if any(i["family"] == f.name for t in trees.values() for i in t["images"])
    ]
    write_whole(out / "SOURCES.md", sources_text(used).encode())
    return {split: len(tree["images"]) for split, tree in trees.items()}


def _tree(split: str, seed: int) -> dict[str, Any]:
    return {
        "info": {"description": f"Rendered web pages, split {split}", "version": "2", "seed": seed},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": i + 1, "name": name, "supercategory": "ui"} for i, name in enumerate(CLASSES)
        ],
    }


def _append(
    tree: dict[str, Any], family: Family, job: dict[str, Any], view: dict[str, Any]
) -> None:
    licences = tree["licenses"]
    if family.licence not in [entry["name"] for entry in licences]:
        licences.append({"id": len(licences) + 1, "name": family.licence, "url": ""})
    image_id = len(tree["images"]) + 1
    tree["images"].append({
        "id": image_id,
        "file_name": view["file"],
        "width": view["width"],
        "height": view["height"],
        "license": next(entry["id"] for entry in licences if entry["name"] == family.licence),
        "family": family.name,
        "kind": family.kind,
        "source": f"{family.name}/{job['page']}",
        "packages": list(family.packages),
        "attribution": attribution(family),
        "seed": job["seed"],
        "device_scale_factor": job["scale"],
        "dark": job["dark"],
        "browser": view["browser"],
    })  # fmt: skip
    for fine, x0, y0, x1, y1 in view["labels"]:
        width, height = round(x1 - x0, 1), round(y1 - y0, 1)
        tree["annotations"].append({
            "id": len(tree["annotations"]) + 1,
            "image_id": image_id,
            "category_id": CLASSES.index(CLASS_OF.get(fine, fine)) + 1,
            "bbox": [x0, y0, width, height],
            "area": round(width * height, 1),
            "iscrowd": 0,
            "fine": fine,
        })  # fmt: skip


def attribution(family: Family) -> str:
    """Whose the pages are, as their licences ask to say."""
    packages = all_packages()
    return "; ".join(packages[k].attribution or packages[k].name for k in family.packages)


def sources_text(families: list[Family]) -> str:
    """SOURCES.md: what the pictures show, under which licence, from whom."""
    packages = all_packages()
    lines = ["# Sources of the pictures", "", "Pages of these families were rendered.", ""]
    lines += ["| family | split | licence of the pages | packages |", "|---|---|---|---|"]
    for f in families:
        keys = ", ".join(f.packages) or (
            f"the application {f.app}" if f.app else "pages of our own"
        )
        lines.append(f"| {f.name} | {f.split} | {f.licence} | {keys} |")
    lines += ["", "| package | version | licence | attribution |", "|---|---|---|---|"]
    for key in sorted({k for f in families for k in f.packages}):
        p = packages[key]
        lines.append(f"| {p.name} | {p.version} | {p.licence} | {p.attribution} |")
    counts = Counter(f.licence for f in families)
    lines += [
        "",
        "Licences by families: " + ", ".join(f"{n} {k}" for k, n in counts.most_common()) + ".",
    ]
    return "\n".join(lines) + "\n"

"""What training a built-in model on brings on pages that it has never seen, and what it forgets.

    python benchmarks/finetune.py serve/clq_serve/models/webui-nano/3 \\
        train/configs/webui_nano.yaml data.root=DATA \\
        --families jupyterlab,spectre --out runs/finetune

Of each family of the split test, half of the pages are for training and the other half for
measuring; a page's screenshots stay together. A row is the bundle as it is, trained on with frozen
batch statistics, and with those of its batches; the last column is the AP on the split val, which
has other families and shows what is forgotten.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clq_serve.detector import DetectOptions
from clq_train.checkpoint import load_model
from clq_train.config import Config, load_config
from clq_train.evaluate import TorchEngine, evaluate
from clq_train.fit import fit

# As the three commands of docs/model_card.md.
RECIPE = [
    *("schedule.batch=4", "schedule.lr=0.0005", "schedule.warmup_steps=20", "run.eval_every=null"),
    *("augment.crop_px=640", "augment.scale=[0.7, 1.4]", "run.checkpoint_every=100000"),
]
ROWS = {"frozen statistics": True, "batch statistics": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="such as data.root=DATA schedule.lr=0.0005")
    parser.add_argument("--families", required=True, help="of the split test, by commas")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    before = imported(asked.bundle, asked.config, asked.out)
    print("| family | trained on | | AP | AP50 | AP75 | minutes | AP on val |")
    print("|---" * 8 + "|", flush=True)
    for family in asked.families.split(","):
        folder = asked.out / family
        count = split_family(load_config(asked.config, asked.overrides), family, folder)
        own = {name: (folder / f"{name}.json").resolve() for name in ("train", "test")}
        files = [f"data.splits.{name}.annotations={path}" for name, path in own.items()]
        changes = [*RECIPE, f"schedule.steps={asked.steps}", *asked.overrides, *files]
        changes.append(f"init={before / 'model.safetensors'}")
        row = f"| {family} | {count} screenshots | "
        print(f"{row}before | {figures(before, load_config(asked.config, changes), 0)}", flush=True)
        for name, frozen in ROWS.items():
            mine = [*changes, f"schedule.frozen_statistics={str(frozen).lower()}"]
            config = load_config(asked.config, mine)
            began = time.monotonic()
            checkpoint = fit(config, folder / name.partition(" ")[0], progress=False)
            took = time.monotonic() - began
            print(f"{row}{name} | {figures(checkpoint, config, took)}", flush=True)


def imported(bundle: Path, config: Path, out: Path) -> Path:
    """The bundle as a checkpoint."""
    command = [sys.executable, "-m", "clq_train", "import", str(bundle), "--from", "bundle"]
    command += ["--config", str(config), "--checkpoint", str(out / "before")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out / "before/step-000000"


def split_family(config: Config, family: str, folder: Path) -> int:
    """Writes train.json and test.json of every other page; returns the images of the first."""
    tree = json.loads((config.data.root / config.data.splits["test"].annotations).read_text())
    own = [image for image in tree["images"] if image["family"] == family]
    pages = sorted({image["source"] for image in own})
    if len(pages) < 2:
        sys.exit(f"{family}: {len(pages)} pages in the split test, of which two are needed")
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"train": set(pages[::2]), "test": set(pages[1::2])}
    for name, half in halves.items():
        images = [image for image in own if image["source"] in half]
        (folder / f"{name}.json").write_text(json.dumps(part(tree, images)))
    return sum(image["source"] in halves["train"] for image in own)


def part(tree: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    ids = {image["id"] for image in images}
    objects = [entry for entry in tree["annotations"] if entry["image_id"] in ids]
    return {**tree, "images": images, "annotations": objects}


def figures(checkpoint: Path, config: Config, seconds: float) -> str:
    model, _ = load_model(checkpoint)
    engine = TorchEngine(model)
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    own, kept = (
        evaluate(engine, config.input_rule, config.data, split, options, progress=False)
        for split in ("test", "val")
    )
    shown = [f"{100 * value:.1f}" for value in (own.ap, own.ap50, own.ap75)]
    return " | ".join([*shown, f"{seconds / 60:.1f}", f"{100 * kept.ap:.1f} |"])


if __name__ == "__main__":
    main()

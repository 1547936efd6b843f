"""What training a built-in model on brings on pages that it has never seen, and what it forgets.

    python benchmarks/finetune.py serve/clq_serve/models/webui-nano/4 \\
        train/configs/webui_nano.yaml data.root=DATA \\
        --families jupyterlab,spectre --out runs/finetune

Of each family of the split test, half of the pages are for training and the other half for
measuring; a page's screenshots stay together. A row is the bundle as it is, trained on with frozen
batch statistics, with those of its batches, and, frozen, for twice the steps on the split train as
well, every other image from each; the last column is the AP on the split val, which has other
families and shows what is forgotten.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from clq_train.checkpoint import WEIGHTS
from clq_train.coco import load_split
from clq_train.config import Config, load_config
from clq_train.evaluate import evaluate
from clq_train.fit import fit
from clq_train.measure import Evaluation
from clq_train.targets import Target, open_target
from clq_train.truth import group_images, images_where, only_images

# As the three commands of docs/model_card.md.
RECIPE = [
    *("schedule.optimizer=adamw", "schedule.lr=0.0005", "schedule.warmup_steps=20"),
    *("run.eval_every=null", "run.checkpoint_every=100000"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="such as data.root=DATA schedule.lr=0.0005")
    parser.add_argument("--families", required=True, help="of the split test, by commas")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    base = load_config(asked.config, asked.overrides)
    before = imported(asked.bundle, asked.config, asked.out)
    target = open_target(before)
    kept = measured(target, base, "val")
    built = len(load_split(base.data, "train"))
    print("| family | trained on | | AP | AP50 | AP75 | minutes | AP on val |")
    print("|---" * 8 + "|", flush=True)
    for family in asked.families.split(","):
        folder = asked.out / family
        count = split_family(base, family, folder)
        own = {name: (folder / f"{name}.json").resolve() for name in ("train", "test")}
        changes = [*RECIPE, *asked.overrides, f"init={before / WEIGHTS}"]
        changes.append(f"data.splits.test.annotations={own['test']}")
        alone = [f"data.splits.train.annotations={own['train']}", f"schedule.steps={asked.steps}"]
        images = str(base.data.splits["test"].images)
        more = {"annotations": str(own["train"]), "images": images, "times": round(built / count)}
        both = [f"data.more={json.dumps([more])}", f"schedule.steps={2 * asked.steps}"]
        rows = {
            "frozen statistics": ["schedule.frozen_statistics=true", *alone],
            "batch statistics": alone,
            "and the split train": ["schedule.frozen_statistics=true", *both],
        }
        row = f"| {family} | {count} screenshots | "
        found = measured(target, load_config(asked.config, changes), "test")
        print(f"{row}before | {cells(found, 0, kept)}", flush=True)
        for name, mine in rows.items():
            config = load_config(asked.config, [*changes, *mine])
            began = time.monotonic()
            checkpoint = fit(config, folder / name.replace(" ", "-"), progress=False)
            took = time.monotonic() - began
            trained = open_target(checkpoint)
            found, left = (measured(trained, config, split) for split in ("test", "val"))
            print(f"{row}{name} | {cells(found, took, left)}", flush=True)


def imported(bundle: Path, config: Path, out: Path) -> Path:
    """The bundle as a checkpoint."""
    command = [sys.executable, "-m", "clq_train", "import", str(bundle), "--from", "bundle"]
    command += ["--config", str(config), "--checkpoint", str(out / "before")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out / "before/step-000000"


def split_family(config: Config, family: str, folder: Path) -> int:
    """Writes train.json and test.json of every other page; returns the images of the first."""
    tree = json.loads((config.data.root / config.data.splits["test"].annotations).read_text())
    by_page = group_images(only_images(tree, images_where(tree, {"family": [family]})), "source")
    if len(by_page) < 2:
        sys.exit(f"{family}: {len(by_page)} pages in the split test, of which two are needed")
    pages = [by_page[page] for page in sorted(by_page)]
    halves = {"train": set().union(*pages[::2]), "test": set().union(*pages[1::2])}
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in halves.items():
        (folder / f"{name}.json").write_text(json.dumps(only_images(tree, ids)))
    return len(halves["train"])


def measured(target: Target, config: Config, split: str) -> Evaluation:
    return evaluate(target.engine, target.rule, config.data, split, target.options, progress=False)


def cells(found: Evaluation, seconds: float, kept: Evaluation) -> str:
    shown = [f"{100 * value:.1f}" for value in (found.ap, found.ap50, found.ap75)]
    return " | ".join([*shown, f"{seconds / 60:.1f}", f"{100 * kept.ap:.1f} |"])


if __name__ == "__main__":
    main()

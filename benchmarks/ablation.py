"""Trains every row of an ablation with one budget, and prints what each gives on a split.

    clq-train import BUNDLE --from bundle --only backbone,neck --out trunk.safetensors
    python benchmarks/ablation.py train/configs/webui_nano.yaml data.root=DATA \\
        --trunk trunk.safetensors --out runs/ablation

The rows are the table of docs/variants.md, and torchvision's FCOS and RetinaNet heads. All start
from the same backbone and neck, see the same crops in the same order, and differ in the head alone.
A row that results.jsonl of the folder has already is not trained again, so that the command can be
stopped and repeated.
"""

import argparse
import json
import logging
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ablation_peers import PEERS, train_peer

from clq_train.config import Config, load_config
from clq_train.evaluate import evaluate
from clq_train.fit import fit
from clq_train.measure import Evaluation
from clq_train.targets import open_target

VARIANTS_PAGE = Path(__file__).parents[1] / "docs/variants.md"
BASELINE = "clq"
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium")


def variants() -> dict[str, list[str]]:
    """Overrides of each row of the page's table, in its order."""
    rows = re.findall(
        r"^\| `([\w.-]+)` \| .* \| (?:`(model[^`]*)`)? ?\|$", VARIANTS_PAGE.read_text(), re.M
    )
    return {name: overrides.split() for name, overrides in rows}


def train_and_measure(row: str, config: Config, run: Path, split: str) -> Evaluation:
    """The evaluation of a row's weights after its last step."""
    if row in PEERS:
        return train_peer(row, config, split)
    target = open_target(fit(config, run))
    return evaluate(target.engine, target.rule, config.data, split, target.options)


def print_table(results: Path) -> None:
    """One line a row: mean and range over the seeds."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        rows.setdefault(entry["row"], []).append(entry)
    base = rows.get(BASELINE)
    print("| row | seeds | " + " | ".join(m.upper() for m in METRICS) + " | AP - clq |")
    print("|---" * (len(METRICS) + 3) + "|")
    for row, entries in rows.items():
        cells = []
        for metric in METRICS:
            values = [100 * e[metric] for e in entries]
            spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        # Seed by seed: a seed moves all rows together (the same crops in the same order).
        pairs = [
            100 * (e["ap"] - b["ap"]) for e in entries for b in base or [] if e["seed"] == b["seed"]
        ]
        cells.append(f"{statistics.mean(pairs):+.1f}" if pairs else "")
        print(f"| {row} | {len(entries)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="for every row, such as data.root=DATA")
    parser.add_argument(
        "--trunk", type=Path, required=True, help="tensors that every row begins with"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", help="comma-separated [default: all]")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop-px", type=int, default=320)
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    results = asked.out / "results.jsonl"
    results.touch()
    done = {(e["row"], e["seed"]) for e in map(json.loads, results.read_text().splitlines())}
    known = {**variants(), **{peer: [] for peer in PEERS}}
    rows = asked.rows.split(",") if asked.rows else list(known)
    for seed in map(int, asked.seeds.split(",")):
        for row in rows:
            if (row, seed) in done:
                continue
            config = load_config(
                asked.config,
                [
                    *asked.overrides,
                    f"init={asked.trunk}",
                    f"run.seed={seed}",
                    f"schedule.steps={asked.steps}",
                    f"schedule.batch={asked.batch}",
                    f"schedule.warmup_steps={asked.steps // 12}",
                    f"augment.crop_px={asked.crop_px}",
                    f"run.checkpoint_every={asked.steps}",
                    *known[row],
                ],
            )
            run = asked.out / f"{row}-{seed}"
            shutil.rmtree(run, ignore_errors=True)  # of an attempt that was stopped
            began = time.monotonic()
            measured = train_and_measure(row, config, run, asked.split)
            entry = {
                "row": row,
                "seed": seed,
                "steps": asked.steps,
                "seconds": round(time.monotonic() - began),
                **{metric: getattr(measured, metric) for metric in METRICS},
            }
            with results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
    print_table(results)


if __name__ == "__main__":
    main()

"""The commands `clq-train data`: what is in the data, and what training sees of it."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Look at the data before and while you train on it.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example data.root=DIR")
]


@data.command()
def stats(
    config: ConfigFile,
    overrides: Overrides = None,
    split: Annotated[
        list[str] | None, typer.Option(help="split, may be given again [default: all]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder that gets stats.json and stats.png")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="decode every image, to find damaged ones")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Count boxes by class, size and shape, and list every broken entry.

    Broken entries are not fatal here; `fit` stops for them before its first step.
    """
    from clq_train.coco import split_names
    from clq_train.config import load_config
    from clq_train.data_picture import draw_stats
    from clq_train.data_stats import hints, split_stats
    from clq_train.data_table import stats_lines
    from clq_train.whole_file import write_text

    settings = load_config(config, overrides or [])
    found, measures = {}, {}
    for name in split or split_names(settings.data):
        found[name], measures[name] = split_stats(settings, name, decode)
    advice = hints(found, measures, settings)
    tree = {"splits": {name: asdict(one) for name, one in found.items()}, "hints": advice}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "stats.json", json.dumps(tree, indent=1) + "\n")
        draw_stats(found, measures, settings, out / ".stats.png.tmp")
        os.replace(out / ".stats.png.tmp", out / "stats.png")
    if as_json:
        typer.echo(json.dumps(tree))
        return
    typer.echo("\n".join(stats_lines(found, advice)))
    if out is not None:
        typer.echo(f"\n{out / 'stats.png'}\n{out / 'stats.json'}")


@data.command()
def show(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="folder that gets a PNG a sample, and sheet.png")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, max=200, help="samples to draw")] = 30,
    start: Annotated[int, typer.Option(min=0, help="position of the first in the run")] = 0,
) -> None:
    """Draw samples exactly as training will see them, with their boxes and labels.

    The sample at a position of a run is always the same. Step 1 has positions 0 to batch - 1.
    """
    from clq_train.config import load_config
    from clq_train.data_show import show_samples

    for line in show_samples(load_config(config, overrides or []), out, start, count):
        typer.echo(line)
    typer.echo(out / "sheet.png")

"""The commands `clq-train webui ...`."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from clq_train.errors import DataError

app = typer.Typer(
    help="Renders web pages into a data set of user-interface elements.", no_args_is_help=True
)

Cache = Annotated[
    Path | None, typer.Option(help="folder of downloaded packages [default: ~/.cache/clq-webui]")
]


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="folder of the data set; a build that stopped goes on")],
    images: Annotated[int, typer.Option(help="about how many")] = 4500,
    seed: Annotated[int, typer.Option(help="the same seed gives the same pages")] = 7,
    workers: Annotated[int, typer.Option(help="Chromium processes at a time")] = 3,
    family: Annotated[list[str] | None, typer.Option(help="only this family; repeatable")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="without this family; repeatable")] = None,
    screen: Annotated[
        list[str] | None,
        typer.Option(help="pictures of WIDTHxHEIGHT px, in place of many sizes; repeatable"),
    ] = None,
    cache: Cache = None,
    chromium: Annotated[Path | None, typer.Option(help="[default: chromium on the path]")] = None,
    system_fonts: Annotated[
        bool, typer.Option(help="this machine's fonts, not those of packages")
    ] = False,
) -> None:
    """Fetch the packages, render the pages in Chromium, write COCO files.

    Once everything is fetched it needs no network.
    """
    from clq_train.webui.dataset import Settings, build_dataset
    from clq_train.webui.fetch import default_cache

    executable = str(chromium) if chromium else shutil.which("chromium")
    sizes = tuple(_size(text) for text in screen or ())
    settings = Settings(images, seed, tuple(family or ()), tuple(skip or ()), sizes)
    counts = build_dataset(
        out, settings, cache or default_cache(), workers, executable, system_fonts
    )
    typer.echo(", ".join(f"{split}: {count} images" for split, count in counts.items()))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise DataError(f"--screen {text!r}: expected WIDTHxHEIGHT in px, such as 1920x1080")
    return int(width), int(height)


@app.command()
def sheet(
    data: Annotated[Path, typer.Argument(help="folder that `webui build` wrote")],
    out: Annotated[Path, typer.Option(help="folder of the sheets")],
    family: Annotated[list[str] | None, typer.Option(help="only this family; repeatable")] = None,
    each: Annotated[int, typer.Option(help="pictures of each family")] = 6,
    columns: Annotated[int, typer.Option(help="pictures in a row")] = 3,
    width_px: Annotated[int, typer.Option(help="of each picture on the sheet")] = 640,
) -> None:
    """Draw a contact sheet with boxes for each family."""
    from clq_train.webui.review import write_sheets

    for path in write_sheets(data, out, family, each, columns, width_px):
        typer.echo(path)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="folder that `webui build` wrote")],
    as_json: Annotated[
        bool, typer.Option("--json", help="every doubtful box as JSON lines")
    ] = False,
) -> None:
    """Look for doubtful labels: overlaps, invisible and clipped elements, pages rendered twice.

    Exits with 1 when a box lies outside its picture or a file is missing.
    """
    from clq_train.webui.check import check_dataset, summary

    doubts = check_dataset(data)
    if as_json:
        for doubt in doubts:
            typer.echo(json.dumps(doubt.as_dict()))
    else:
        typer.echo(summary(doubts))
    fatal = [d for d in doubts if d.fatal]
    if fatal:
        raise DataError(f"{data}: {len(fatal)} labels or pictures can't be used")

"""`clq-train import`: another file's weights as a file for the configuration's `init`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Origin(StrEnum):
    bundle = "bundle"


def import_weights(
    source: Annotated[
        Path, typer.Argument(help="what to read; for bundle the folder NAME/VERSION")
    ],
    origin: Annotated[Origin, typer.Option("--from", help="what wrote it")],
    config: Annotated[Path, typer.Option(help="YAML file of the run that will start from it")],
    out: Annotated[Path, typer.Option(help="the .safetensors file to write")],
    only: Annotated[
        str, typer.Option(help="modules to take, such as backbone,neck [default: all]")
    ] = "",
    each: Annotated[bool, typer.Option(help="name every tensor that was taken")] = False,
) -> None:
    """Read another file's weights into a file that the configuration's `init` starts from.

    Prints what was mapped, what stays at its start value and what was left over.
    """
    from clq_train.config import load_config
    from clq_train.detector import ClqDetector
    from clq_train.import_bundle import read_bundle
    from clq_train.import_report import fit_to

    settings = load_config(config, [])
    model = ClqDetector(settings.model, len(settings.data.classes))
    foreign = read_bundle(source, model)
    parts = [part for part in only.split(",") if part]
    imported = fit_to(model, settings.data.classes, foreign, parts)
    imported.write(out)
    for line in imported.lines(each):
        typer.echo(line)
    typer.echo(f"start from it: init={out}")

"""`clq-train import`: another file's weights for the configuration's `init`, or as a checkpoint."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clq_train.errors import ConfigError
from clq_train.option_pairs import option_pairs


class Origin(StrEnum):
    bundle = "bundle"
    mmdet = "mmdet"
    torchvision = "torchvision"


class Channels(StrEnum):
    rgb = "rgb"
    bgr = "bgr"


def import_weights(
    origin: Annotated[Origin, typer.Option("--from", help="what wrote it")],
    config: Annotated[Path, typer.Option(help="YAML file of the run that will start from it")],
    source: Annotated[
        Path | None,
        typer.Argument(
            help="the file, or a bundle's folder NAME/VERSION; without it torchvision downloads"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the .safetensors file to write, for a run's init")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="folder that gets step-000000, to export and evaluate without training"),
    ] = None,
    only: Annotated[
        str, typer.Option(help="modules to take, such as backbone,neck [default: all]")
    ] = "",
    each: Annotated[bool, typer.Option(help="name every tensor that was taken")] = False,
    channels: Annotated[
        Channels | None, typer.Option(help="mmdet: order of its pixels, if the file does not say")
    ] = None,
    renames: Annotated[
        list[str] | None,
        typer.Option("--map", help="mmdet: MODULE=OURS, such as bbox_head.atss_iou=head.quality"),
    ] = None,
) -> None:
    """Read another program's weights into a file to start from (--out) or a checkpoint.

    Prints what was mapped, what stays at its start value and what was left over.
    """
    from clq_train.config import load_config
    from clq_train.detector import ClqDetector
    from clq_train.import_bundle import read_bundle
    from clq_train.import_mmdet import read_mmdet
    from clq_train.import_report import fit_to
    from clq_train.import_torchvision import read_torchvision

    if source is None and origin is not Origin.torchvision:
        raise ConfigError(f"--from {origin} needs the file or folder to read")
    if (out is None) == (checkpoint is None):
        raise ConfigError("give --out FILE to train from the weights, or --checkpoint FOLDER")
    if origin is not Origin.mmdet and (channels or renames):
        raise ConfigError("--channels and --map are for --from mmdet")
    settings = load_config(config, [])
    model = ClqDetector(settings.model, len(settings.data.classes))
    if origin is Origin.torchvision:
        foreign = read_torchvision(source, model)
    elif origin is Origin.bundle:
        foreign = read_bundle(source, model)
    else:
        modules = option_pairs("--map", renames or [], "MODULE=OURS")
        foreign = read_mmdet(source, settings.model.head, channels, modules)
    parts = [part for part in only.split(",") if part]
    imported = fit_to(model, settings.data.classes, foreign, parts)
    if out is not None:
        imported.write(out)
        ending = f"start from it: init={out}"
    else:
        ending = f"checkpoint {imported.write_checkpoint(checkpoint, model, settings)}"
    for line in imported.lines(each):
        typer.echo(line)
    typer.echo(ending)

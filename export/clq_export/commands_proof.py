"""The commands of clq-export that show what a bundle is: verify, inspect."""

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from clq_export.choices import VerifyRuntime
from clq_export.errors import ExportError

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a bundle NAME/VERSION")]


def verify(
    bundle: Bundle,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for example data.root=DIR")
    ] = None,
    runtime: Annotated[VerifyRuntime, typer.Option(help="what runs the bundle")] = "ort-cpu",
    images: Annotated[Path | None, typer.Option(help="folder of images to compare on")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="YAML that names data: compare, and AP")
    ] = None,
    split: Annotated[str, typer.Option(help="of the data")] = "val",
    gpu: Annotated[int, typer.Option(min=0, help="number of the GPU")] = 0,
    max_score: Annotated[float | None, typer.Option(min=0, help="[default: by precision]")] = None,
    max_box_px: Annotated[float | None, typer.Option(min=0, help="[default: by precision]")] = None,
    write: Annotated[bool, typer.Option(help="record the result in the manifest")] = True,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Run a bundle in a runtime, hold it against the reference, and record how far it is.

    The golden images are compared with what torch gave; others with ONNX Runtime on the CPU.
    Exit status 1 if a score, a box or a class differs by more than is accepted.
    """
    from dataclasses import replace

    from clq_export import verify as verifying
    from clq_export.runtimes import open_runtime
    from clq_serve.bundle import load_bundle
    from clq_serve.engine import OnnxEngine
    from clq_train.config import load_config

    if images is not None and runtime == "ort-cpu":
        raise ExportError("--images: ort-cpu is the reference there; accepted: another --runtime")
    loaded = load_bundle(bundle)
    config = None if data is None else load_config(data, overrides or [])
    if config is not None and config.data.classes != loaded.manifest.class_names:
        raise ExportError(f"{data}: data.classes are not those of {bundle}")
    opened = open_runtime(runtime, loaded, gpu, threads)
    bars = opened.accepted
    accepted = type(bars)(
        bars.score if max_score is None else max_score,
        bars.box_px if max_box_px is None else max_box_px,
    )
    opened = replace(opened, accepted=accepted)
    typer.echo(
        f"{runtime} {opened.version} on {opened.device}, deformable convolution: {opened.dcn}"
    )
    report = verifying.Report()
    verifying.compare_golden_images(opened, loaded, report)
    if images is not None or config is not None:
        reference = OnnxEngine(loaded, threads)
    if images is not None:
        verifying.compare_images(opened, reference, loaded, images, report)
    if config is not None:
        ours, theirs = verifying.compare_split(opened, reference, loaded, config, split, report)
        typer.echo(
            f"{split}: AP {100 * ours.ap:.2f}, reference {100 * theirs.ap:.2f}, over "
            f"{ours.images} images"
        )
    typer.echo(
        f"{report.images} images, {report.compared} candidates: scores within {report.score:.1e} "
        f"({report.shown_by['score']}), boxes within {report.box_px:.1e} px "
        f"({report.shown_by['box_px']}), {report.labels_changed} changed class"
    )
    report.check(accepted)
    if write:
        verifying.record(loaded, opened, report)
        typer.echo(f"recorded in {loaded.path / 'manifest.json'}")


def inspect(
    bundle: Bundle,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="of the input [default: the first golden]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs that the times are medians of")] = 5,
    slowest: Annotated[int, typer.Option(min=0, help="how many nodes are shown")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as one object")] = False,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Show what a bundle's graph is made of and where ONNX Runtime's time goes.

    Parts: input, backbone, neck, towers, dcn, post; layout is what ONNX Runtime adds to change the
    order of tensors in memory.
    """
    from dataclasses import asdict

    from clq_export.inspection import inspect_bundle, table
    from clq_serve.bundle import load_bundle
    from clq_serve.golden import read_golden

    loaded = load_bundle(bundle)
    if size is None:
        height, width = read_golden(loaded)[0].images.shape[1:3]
    else:
        height, width = parse_size(size, loaded.manifest.input.pad.multiple)
    found = inspect_bundle(loaded, (height, width), threads, repeats)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo("\n".join(table(found, slowest)))


def parse_size(text: str, multiple: int) -> tuple[int, int]:
    """(H, W) of a size such as 1280x832.  Raises ExportError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None or any(int(side) % multiple for side in match.groups()):
        raise ExportError(f"--size {text}: accepted: WxH, both multiples of {multiple}")
    return int(match[2]), int(match[1])


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)
    app.command()(inspect)

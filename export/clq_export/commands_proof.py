"""The commands of clq-export that show what a bundle is: verify, inspect."""

import os
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


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)

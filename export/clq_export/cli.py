"""The command `clq-export`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clq_export import commands_elsewhere, commands_proof, commands_tensorrt
from clq_export.choices import DcnForm, Runtime
from clq_export.errors import ClqExportError
from clq_serve.errors import ClqServeError
from clq_train.errors import ClqTrainError

app = typer.Typer(
    help="Exports CLQ checkpoints to bundles that clq-serve runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="a folder step-NNNNNN of clq-train")],
    out: Annotated[Path, typer.Option(help="folder that gets NAME/VERSION/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for example data.root=DIR")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="[default: the next free]")] = None,
    golden: Annotated[
        list[Path] | None, typer.Option(help="image for golden.npz [default: two of val]")
    ] = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="the service's default score threshold")
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option("--max", min=1, help="the service's default count")
    ] = None,
    trained_on: Annotated[str, typer.Option(help="one sentence for the manifest")] = "",
    licence: Annotated[str, typer.Option(help="of the weights")] = "unstated",
    evaluate: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="measure the bundle and record its AP")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML that the recorded eval command names")
    ] = None,
    dcn: Annotated[
        DcnForm,
        typer.Option(
            help="standard: ONNX DeformConv. plugin: a function clq::DeformConv2d around it, which "
            "our TensorRT plugin replaces. taps: GridSample and one product, for other runtimes."
        ),
    ] = "standard",
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Write a bundle: manifest.json, model.onnx and golden.npz.

    The bundle is loaded by the service's own loader and compared with torch; one that differs is
    not kept.
    """
    # torch takes seconds to import: not before the arguments are known to be good.
    from clq_export.bundle import ExportRequest, export_bundle
    from clq_train.checkpoint import CONFIG
    from clq_train.config import load_config

    settings = load_config(checkpoint / CONFIG, overrides or [])
    named = config or Path("config.yaml")
    request = ExportRequest(
        checkpoint=checkpoint,
        config=settings,
        out=out,
        version=version,
        golden=golden or [],
        score=score,
        max=max_detections,
        trained_on=trained_on or f"the split train of {settings.name}",
        licence=licence,
        eval_split=evaluate,
        command=f"clq-train eval BUNDLE --config {named} --split {evaluate} data.root=DATA",
        threads=threads,
        dcn=dcn,
    )
    final, parity, measured = export_bundle(request)
    typer.echo(
        f"parity over {parity.inputs} inputs: scores within {parity.score:.1e}, "
        f"boxes within {parity.box_px:.1e} px"
    )
    if measured is not None:
        typer.echo(
            f"{evaluate}: AP {100 * measured.ap:.1f}, AP50 {100 * measured.ap50:.1f}, "
            f"AP75 {100 * measured.ap75:.1f} over {measured.images} images"
        )
    size = (final / "model.onnx").stat().st_size
    typer.echo(f"bundle {final} ({size / 1e6:.1f} MB)")


@app.command()
def int8(
    bundle: Annotated[Path, typer.Argument(help="a float32 bundle NAME/VERSION")],
    config: Annotated[Path, typer.Option(help="YAML file that names the data")],
    out: Annotated[Path, typer.Option(help="folder that gets NAME/VERSION/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, for example data.root=DIR")
    ] = None,
    split: Annotated[str, typer.Option(help="split on which both bundles are measured")] = "val",
    version: Annotated[int | None, typer.Option(min=1, help="[default: the next free]")] = None,
    runtime: Annotated[
        Runtime, typer.Option("--for", help="whose 8-bit form: unsigned or signed activations")
    ] = "onnxruntime",
    calibration: Annotated[int, typer.Option(min=1, help="images of the split train")] = 32,
    max_ap_drop: Annotated[
        float, typer.Option(min=0, help="in points of AP; a larger loss is refused")
    ] = 0.3,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Write the 8-bit sibling of a float32 bundle, and keep it if it is nearly as precise.

    Both are measured on the same images in the service's own engine.
    """
    from clq_export.int8_bundle import Int8Request, export_int8, two_rows
    from clq_train.config import load_config

    settings = load_config(config, overrides or [])
    command = f"clq-train eval BUNDLE --config {config} --split {split} data.root=DATA"
    request = Int8Request(
        bundle=bundle,
        config=settings,
        split=split,
        out=out,
        version=version,
        runtime=runtime,
        calibration=calibration,
        max_ap_drop=max_ap_drop,
        command=command,
        threads=threads,
    )
    result = export_int8(request)
    typer.echo("\n".join(two_rows(result, split)))
    size = (result.folder / "model.onnx").stat().st_size
    typer.echo(f"bundle {result.folder} ({size / 1e6:.1f} MB, {result.convolutions} convolutions)")


commands_elsewhere.register(app)
commands_proof.register(app)
commands_tensorrt.register(app)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        app()
    except (ClqExportError, ClqTrainError, ClqServeError) as error:
        print(f"clq-export: {error}", file=sys.stderr)
        sys.exit(1)

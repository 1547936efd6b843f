"""The command `clq-export`."""

import logging
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from clq_export import commands_elsewhere, commands_precision, commands_proof, commands_tensorrt
from clq_export.choices import DcnForm, Weights
from clq_export.errors import ClqExportError, ExportError
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
    precision: Annotated[
        Literal["fp32", "fp16"],
        typer.Option(help="fp16: as `clq-export fp16` would make it, measured on --evaluate"),
    ] = "fp32",
    weights: Annotated[
        Weights,
        typer.Option(help="float16: kernels are stored in it and computed in float32, half the MB"),
    ] = "float32",
    max_ap_drop: Annotated[
        float, typer.Option(min=0, help="of fp16, in points of AP; a larger loss is refused")
    ] = 0.1,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Write a bundle: manifest.json, model.onnx and golden.npz.

    The bundle is loaded by the service's own loader and compared with torch; one that differs is
    not kept.
    """
    if weights == "float16" and precision == "fp16":
        raise ExportError(
            "--weights float16: accepted with --precision fp32; fp16 stores it anyway"
        )
    # torch takes seconds to import: not before the arguments are known to be good.
    from clq_export.beside import next_version
    from clq_export.bundle import ExportRequest, export_bundle
    from clq_export.reduced_bundle import ReducedRequest
    from clq_train.checkpoint import CONFIG
    from clq_train.config import load_config

    settings = load_config(checkpoint / CONFIG, overrides or [])
    named, split = config or Path("config.yaml"), evaluate or "val"
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
        command=f"clq-train eval BUNDLE --config {named} --split {split} data.root=DATA",
        threads=threads,
        dcn=dcn,
        weights=weights,
    )
    if precision == "fp16":
        with tempfile.TemporaryDirectory() as folder:
            # Float32 first: what is halved is known to be the torch model.
            exact = replace(request, out=Path(folder), version=1, eval_split=None)
            commands_precision.run(
                ReducedRequest(
                    bundle=export_bundle(exact)[0],
                    precision="float16",
                    config=settings,
                    split=split,
                    out=out,
                    version=version or next_version(out / settings.name),
                    max_ap_drop=max_ap_drop,
                    command=request.command,
                    threads=threads,
                )
            )
        return
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


commands_elsewhere.register(app)
commands_precision.register(app)
commands_proof.register(app)
commands_tensorrt.register(app)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        app()
    except (ClqExportError, ClqTrainError, ClqServeError) as error:
        print(f"clq-export: {error}", file=sys.stderr)
        sys.exit(1)

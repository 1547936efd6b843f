"""The commands of clq-export that make a bundle of fewer bits from one of float32."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clq_export.choices import Runtime

if TYPE_CHECKING:
    from clq_export.reduced_bundle import ReducedRequest

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a float32 bundle NAME/VERSION")]
Config = Annotated[Path, typer.Option(help="YAML file that names the data")]
Out = Annotated[Path, typer.Option(help="folder that gets NAME/VERSION/")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, for example data.root=DIR")
]
Split = Annotated[str, typer.Option(help="split on which both bundles are measured")]
Name = Annotated[str | None, typer.Option(help="of the new bundle [default: that of BUNDLE]")]
Version = Annotated[int | None, typer.Option(min=1, help="[default: the next free]")]
MaxApDrop = Annotated[float, typer.Option(min=0, help="in points of AP; a larger loss is refused")]
Threads = Annotated[int, typer.Option(min=1)]
CORES = os.cpu_count() or 1


def int8(
    bundle: Bundle,
    config: Config,
    out: Out,
    overrides: Overrides = None,
    split: Split = "val",
    name: Name = None,
    version: Version = None,
    runtime: Annotated[
        Runtime, typer.Option("--for", help="whose 8-bit form: unsigned or signed activations")
    ] = "onnxruntime",
    calibration: Annotated[int, typer.Option(min=1, help="images of the split train")] = 32,
    max_ap_drop: MaxApDrop = 0.3,
    threads: Threads = CORES,
) -> None:
    """Write the 8-bit sibling of a float32 bundle, and keep it if it is nearly as precise.

    Both are measured on the same images in the service's own engine.
    """
    # Seconds to import: not before the arguments are known to be good.
    from clq_export.reduced_bundle import ReducedRequest
    from clq_train.config import load_config

    request = ReducedRequest(
        bundle=bundle,
        precision="int8",
        config=load_config(config, overrides or []),
        split=split,
        out=out,
        name=name,
        version=version,
        max_ap_drop=max_ap_drop,
        command=f"clq-train eval BUNDLE --config {config} --split {split} data.root=DATA",
        threads=threads,
        runtime=runtime,
        calibration=calibration,
    )
    run(request)


def fp16(
    bundle: Bundle,
    config: Config,
    out: Out,
    overrides: Overrides = None,
    split: Split = "val",
    name: Name = None,
    version: Version = None,
    max_ap_drop: MaxApDrop = 0.1,
    threads: Threads = CORES,
) -> None:
    """Write the float16 sibling of a float32 bundle, and keep it if it is nearly as precise.

    Both are measured on the same images in the service's own engine. It is for GPUs and for half
    the file: a CPU computes it in float32.
    """
    from clq_export.reduced_bundle import ReducedRequest
    from clq_train.config import load_config

    request = ReducedRequest(
        bundle=bundle,
        precision="float16",
        config=load_config(config, overrides or []),
        split=split,
        out=out,
        name=name,
        version=version,
        max_ap_drop=max_ap_drop,
        command=f"clq-train eval BUNDLE --config {config} --split {split} data.root=DATA",
        threads=threads,
    )
    run(request)


def run(request: "ReducedRequest") -> None:
    """Makes the bundle and prints both figures."""
    from clq_export.reduced_bundle import export_reduced, two_rows

    result = export_reduced(request)
    typer.echo("\n".join(two_rows(result, request.precision, request.split)))
    size = (result.folder / "model.onnx").stat().st_size
    typer.echo(f"bundle {result.folder} ({size / 1e6:.1f} MB, {result.convolutions} convolutions)")


def register(app: typer.Typer) -> None:
    app.command()(int8)
    app.command()(fp16)

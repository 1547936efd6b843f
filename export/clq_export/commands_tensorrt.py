"""The command `clq-export tensorrt`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(tensorrt)


def tensorrt(
    bundle: Annotated[Path, typer.Argument(help="a float bundle NAME/VERSION")],
    precision: Annotated[
        Literal["fp32", "fp16"],
        typer.Option(help="fp16: input, offsets, scores and boxes stay float32"),
    ] = "fp32",
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="a profile, each shape as NxHxW; several times for several "
            "[default: one for all that the bundle's input rule allows, batches up to 8]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the plan [default: engines/ of the bundle]")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="number of the GPU")] = 0,
    plugin: Annotated[
        bool, typer.Option(help="our plugin for the deformable convolution, or TensorRT's own")
    ] = True,
    workspace_mib: Annotated[
        int, typer.Option(min=1, help="most scratch memory that a kernel may ask for")
    ] = 4096,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Build a TensorRT plan of a bundle for the GPU that is here.

    It is run on the golden images and on a batch of each profile; one that differs from ONNX
    Runtime is not kept.
    """
    from clq_export.tensorrt_build import PlanRequest, build, parse_profile
    from clq_serve.bundle import ENGINES_FOLDER, load_bundle

    loaded = load_bundle(bundle)
    multiple = loaded.manifest.input.pad.multiple
    request = PlanRequest(
        bundle=loaded,
        precision=precision,
        profiles=tuple(parse_profile(text, multiple) for text in shapes or []),
        out=out or loaded.path / ENGINES_FOLDER,
        device=device,
        plugin=plugin,
        workspace_bytes=workspace_mib << 20,
        threads=threads,
    )
    built = build(request)
    typer.echo(
        f"against ONNX Runtime over {built.inputs} batches: scores within {built.score:.1e}, boxes "
        f"within {built.box_px:.1e} px; {built.plugins} nodes by our plugin"
    )
    typer.echo(f"plan {built.path} ({built.path.stat().st_size / 1e6:.1f} MB)")

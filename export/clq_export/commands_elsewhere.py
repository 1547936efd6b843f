"""The commands of clq-export for other servers and runtimes than ours."""

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a bundle NAME/VERSION")]


def end2end(
    bundle: Bundle,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="the ONNX file to write")],
) -> None:
    """Write one ONNX file with padding and suppression inside, for plain ONNX Runtime.

    It takes the pixels of an image and gives the service's boxes.
    """
    from clq_export.end2end import write_end2end
    from clq_serve.bundle import load_bundle

    write_end2end(load_bundle(bundle), out)
    typer.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB): image -> boxes, scores, labels")


def triton_repo(
    bundle: Bundle,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="model repository of Triton")],
    max_batch: Annotated[int, typer.Option(min=1, help="images in one call at most")] = 8,
    delay_us: Annotated[int, typer.Option(min=0, help="wait for a batch to fill")] = 2000,
    queue: Annotated[int, typer.Option(min=1, help="requests that wait at most")] = 64,
) -> None:
    """Write the bundle as a model of an NVIDIA Triton repository: config, labels, graph."""
    from clq_export.triton_repository import write_triton_repository
    from clq_serve.bundle import load_bundle

    made = write_triton_repository(
        load_bundle(bundle), folder, max_batch=max_batch, delay_us=delay_us, queue=queue
    )
    typer.echo(f"{made}: tritonserver --model-repository={folder}")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(end2end)
    app.command("triton-repo")(triton_repo)

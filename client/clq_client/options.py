"""Options that several commands have, and how a command gives up."""

from typing import Annotated, NoReturn

import typer

from clq_client.output import printable

Url = Annotated[
    str | None,
    typer.Option(help="Service; without it CLQ_URL, else http://127.0.0.1:8000."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="Better in the variable CLQ_API_KEY: a command line can be seen by others."),
]
Model = Annotated[str | None, typer.Option(help="Name of a loaded model.")]
Version = Annotated[int | None, typer.Option(min=1, help="Version of the model.")]
Score = Annotated[float | None, typer.Option(min=0, max=1, help="Only scores above it.")]
Iou = Annotated[
    float | None, typer.Option(min=0, max=1, help="Above this overlap one of two boxes goes.")
]
Max = Annotated[int | None, typer.Option(min=1, max=1000, help="Detections per image.")]
Classes = Annotated[str | None, typer.Option(help="Names, with commas between.")]
Proxy = Annotated[
    str | None, typer.Option(metavar="URL", help="Proxy; none is taken from the environment.")
]
Ca = Annotated[
    str | None, typer.Option(metavar="FILE", help="Certificates to trust instead of the usual.")
]


def class_names(classes: str | None) -> tuple[str, ...] | None:
    """The names of --classes."""
    return None if classes is None else tuple(name.strip() for name in classes.split(","))


def give_up(error: Exception) -> NoReturn:
    """Ends the command with one line about `error` and the exit code 2."""
    typer.echo(f"clq-client: {printable(error)}", err=True)
    raise typer.Exit(2) from error

"""The command clq-serve: run a service, check a bundle, probe a running service."""

import os
import sys
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from clq_serve import __version__
from clq_serve.errors import ClqServeError
from clq_serve.settings import PREFIX, Settings, read_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a CLQ detector over HTTP.",
)


def main() -> None:
    """The console script: an expected failure is one line on stderr and exit status 1."""
    try:
        app()
    except ClqServeError as err:
        typer.echo(f"clq-serve: {err}", err=True)
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clq-serve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Serve a CLQ detector over HTTP."""


@app.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="0 = any free port.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder NAME/VERSION; default: the built-in model.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: the cores allowed.")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest upload.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest image, pixels.")] = None,
    max_side: Annotated[int | None, typer.Option(help="Longest side, pixels.")] = None,
    max_pending: Annotated[int | None, typer.Option(help="Requests inside at a time.")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="Per request.")] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="After SIGTERM: not ready, but still answering.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
) -> None:
    """Run the service.  Each option has a variable, e.g. CLQ_SERVE_PORT; the option wins."""
    from clq_serve.server import serve  # not above: `healthcheck` starts faster without it

    flags = {
        "host": host,
        "port": port,
        "bundle": bundle,
        "threads": threads,
        "max_body_bytes": max_body_bytes,
        "max_pixels": max_pixels,
        "max_side": max_side,
        "max_pending": max_pending,
        "request_timeout_s": request_timeout_s,
        "drain_s": drain_s,
        "log_level": log_level,
    }
    serve(read_settings(os.environ, flags))


@app.command()
def check(bundle: Annotated[Path, typer.Argument(help="Folder NAME/VERSION.")]) -> None:
    """Check a bundle: schema, digests, graph, golden results on this machine."""
    from clq_serve.loading import load_model

    model = load_model(Settings(), bundle)
    manifest = model.bundle.manifest
    typer.echo(
        f"ok: {manifest.name}/{manifest.version} {model.bundle.digest} "
        f"{len(manifest.classes)} classes, {model.golden_examples} golden examples reproduced "
        f"on {model.provider}"
    )


@app.command()
def healthcheck(
    url: Annotated[
        str | None, typer.Option(help="Default: http://127.0.0.1:PORT/readyz of this environment.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="How long to wait.")] = 5.0,
) -> None:
    """Exit with 0 if the service is ready, else with 1; for Docker's HEALTHCHECK."""
    port = os.environ.get(f"{PREFIX}PORT", str(Settings.model_fields["port"].default))
    target = url or f"http://127.0.0.1:{port}/readyz"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(target, timeout=timeout_s) as answer:
            typer.echo(f"{target}: {answer.status}")
    except (OSError, ValueError) as err:  # HTTP errors and timeouts are OSErrors
        typer.echo(f"clq-serve: {target}: {err}", err=True)
        raise typer.Exit(1) from None

"""The command clq-serve: run a service, list its settings, check a bundle, probe a service."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clq_serve import __version__
from clq_serve.errors import ClqServeError

keys_app = typer.Typer(no_args_is_help=True, help="Make API keys.")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve a CLQ detector over HTTP.",
)


app.add_typer(keys_app, name="keys")


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
        Path | None, typer.Option(help="One bundle, NAME/VERSION; default: the built-in model.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of bundles NAME/VERSION, all of them.")
    ] = None,
    builtin: Annotated[
        str | None,
        typer.Option(help="webui-nano, webui-nano-int8 or webui-small, without a bundle."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, tensorrt:0, plan:0 ...")] = None,
    threads: Annotated[int | None, typer.Option(help="Default: the cores allowed.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; or CLQ_SERVE_CONFIG.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting; may be repeated."),
    ] = None,
) -> None:
    """Run the service.  `clq-serve settings` lists all settings.

    A flag goes before a variable such as CLQ_SERVE_PORT, that before the file, that before the
    default.
    """
    from clq_serve.configuration import read_settings  # `--help` starts faster without these
    from clq_serve.server import serve

    flags = {
        "host": host,
        "port": port,
        "bundle": bundle,
        "models": models,
        "builtin": builtin,
        "device": device,
        "threads": threads,
        "log_level": log_level,
    }
    serve(read_settings(os.environ, flags, set_ or [], config))


@app.command()
def settings() -> None:
    """Print every setting with its meaning and default, as a TOML file to start from."""
    from clq_serve.configuration import template

    typer.echo(template(), nl=False)


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who will use it, e.g. camera-7.")],
    scope: Annotated[list[str] | None, typer.Option(help="infer, metrics or admin.")] = None,
) -> None:
    """Print a new API key, once, and the entry for the file that the setting `keys` names."""
    from clq_serve.keys import new_key, scopes_of

    key, entry = new_key(name, scopes_of(scope or ["infer"]))
    typer.echo(f"key, shown only now: {key}", err=True)
    typer.echo(entry)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Folder NAME/VERSION.")],
    device: Annotated[str, typer.Option(help="As the setting: cpu, cuda:0, plan:0, ...")] = "cpu",
) -> None:
    """Check a bundle: schema, digests, graph, golden results on this machine."""
    from clq_serve.configuration import read_settings
    from clq_serve.loading import load_model

    model = load_model(read_settings({}, {"device": device}), bundle)
    manifest = model.bundle.manifest
    typer.echo(
        f"ok: {manifest.name}/{manifest.version} {model.bundle.digest} "
        f"{len(manifest.classes)} classes, {model.golden_examples} golden examples reproduced "
        f"on {model.placement} ({model.provider})"
    )


@app.command()
def healthcheck(
    url: Annotated[
        str, typer.Option(help="Default: /readyz on the port of this environment.")
    ] = "",
    timeout_s: Annotated[float, typer.Option(help="How long to wait.")] = 5.0,
) -> None:
    """Exit with 0 if the service is ready, else with 1.

    `python -m clq_serve.healthcheck` is the same and takes a tenth of the processor time.
    """
    from clq_serve.healthcheck import probe

    raise typer.Exit(probe(url, timeout_s))

"""How the process listens, starts and stops."""

import logging
import signal
import socket
import threading
from types import FrameType

import typer
import uvicorn
from fastapi import FastAPI

from clq_serve.app import create_app
from clq_serve.errors import SettingsError
from clq_serve.loading import LoadedModel, load_model
from clq_serve.models import ModelStore
from clq_serve.settings import Settings


def serve(settings: Settings) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those in progress.

    Raises SettingsError if the address cannot be listened on, BundleError if the model must not be
    served; both before any request is accepted.
    """
    _print_settings(settings)
    with _listen(settings) as listener:
        model = load_model(settings, settings.bundle)
        _print_model(model)
        app = create_app(settings, ModelStore([model]))
        config = uvicorn.Config(
            app,
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,  # request_log.py writes that line
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.request_timeout_s)),
        )
        _set_up_logging(settings)
        port = listener.getsockname()[1]
        _Server(config, app, settings, port).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, but SIGTERM first means "not ready" for drain_s; the exit status is 0."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings, port: int) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._port = port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            host = self._settings.host
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{self._port}"
            typer.echo(f"ready: curl -F image=@IMAGE {url}/v1/detect   (try it: {url}/docs)")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._app.state.service.draining
        self._app.state.service.draining = True
        if sig == signal.SIGINT or again or self._settings.drain_s == 0:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
        else:
            timer = threading.Timer(self._settings.drain_s, self._stop)
            timer.daemon = True  # a second signal ends the process before the timer does
            timer.start()

    def _stop(self) -> None:
        self.should_exit = True


def _listen(settings: Settings) -> socket.socket:
    address = (settings.host, settings.port)
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family, backlog=128)
    except OSError as err:
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {err.strerror or err}; "
            "choose others with --host and --port"
        ) from err


def _print_settings(settings: Settings) -> None:
    shown = settings.model_dump() | {"bundle": settings.bundle or "built-in"}
    typer.echo("settings: " + " ".join(f"{key}={value}" for key, value in shown.items()))


def _print_model(model: LoadedModel) -> None:
    manifest = model.bundle.manifest
    typer.echo(
        f"model: {manifest.name}/{manifest.version} {model.bundle.digest[:19]} "
        f"on {model.provider}, {model.golden_examples} golden examples reproduced"
    )


def _set_up_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns about strangers' forms

"""How the process listens, starts and stops."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType

import typer
import uvicorn
from fastapi import FastAPI
from uvicorn.config import LifespanType

from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.configuration import shown
from clq_serve.errors import SettingsError
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelStore
from clq_serve.service import DetectService
from clq_serve.settings import Settings


def serve(settings: Settings) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those in progress.

    Raises SettingsError if an address cannot be listened on, BundleError if the model must not be
    served; both before any request is accepted.
    """
    typer.echo(f"settings: {shown(settings)}")
    with contextlib.ExitStack() as listeners:
        public = listeners.enter_context(_listen("", settings.host, settings.port))
        admin = None
        if settings.admin:
            address = ("admin_", settings.admin_host, settings.admin_port)
            admin = listeners.enter_context(_listen(*address))
        models = ModelStore.open(settings)
        for model in models.all():
            _print_model(model)
        app = create_app(settings, models)
        _set_up_logging(settings)
        _PublicServer(app, settings, admin).run(sockets=[public])


class _PublicServer(uvicorn.Server):
    """uvicorn, but SIGTERM first means "not ready" for drain_s; the exit status is 0.

    The admin listener runs in the same event loop, from when the service is there until it has
    finished its last request.
    """

    def __init__(self, app: FastAPI, settings: Settings, admin: socket.socket | None) -> None:
        super().__init__(_config(app, settings, lifespan="on"))
        self._app = app
        self._settings = settings
        self._admin_socket = admin
        self._admin: tuple[_AdminServer, asyncio.Task[None]] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.started:
            return
        assert sockets is not None
        if self._admin_socket is not None:
            service: DetectService = self._app.state.service
            admin = _AdminServer(_config(create_admin_app(service), self._settings, "off"))
            task = asyncio.create_task(admin.serve(sockets=[self._admin_socket]))
            self._admin = (admin, task)
            typer.echo(f"admin: {_url(self._admin_socket)}/metrics")
        url = _url(sockets[0])
        typer.echo(f"ready: curl -F image=@IMAGE {url}/v1/detect   (try it: {url}/)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        if self._admin is not None:
            admin, task = self._admin
            admin.should_exit = admin.force_exit = True
            await task

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


class _AdminServer(uvicorn.Server):
    """uvicorn that leaves the signals, and the start and end of the service, to the public one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _config(app: FastAPI, settings: Settings, lifespan: LifespanType) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        lifespan=lifespan,
        log_config=None,
        access_log=False,  # request_log.py writes that line
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.request_timeout_s)),
    )


def _listen(prefix: str, host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as err:
        flags = " and ".join(f"--{prefix}{end}".replace("_", "-") for end in ("host", "port"))
        raise SettingsError(
            f"cannot listen on {host} port {port}: {err.strerror or err}; "
            f"choose others with {flags}"
        ) from err


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_model(model: LoadedModel) -> None:
    manifest = model.bundle.manifest
    typer.echo(
        f"model: {manifest.name}/{manifest.version} {model.bundle.digest[:19]} "
        f"on {model.placement} ({model.provider}), "
        f"{model.golden_examples} golden examples reproduced"
    )


def _set_up_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns about strangers' forms

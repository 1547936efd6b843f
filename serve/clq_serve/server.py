"""How the process listens, starts and stops."""

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Generator
from types import FrameType
from typing import cast

import typer
import uvicorn
from fastapi import FastAPI
from uvicorn.config import LifespanType

from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.configuration import shown
from clq_serve.errors import SettingsError
from clq_serve.keys import Keys
from clq_serve.loading import LoadedModel
from clq_serve.logs import set_up_logging
from clq_serve.models import ModelStore
from clq_serve.service import DetectService
from clq_serve.settings import Settings
from clq_serve.slow_clients import ConnectionLimits, GuardedConnection, look_at_all

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those in progress.

    Raises SettingsError if an address cannot be listened on, BundleError if the model must not be
    served; both before any request is accepted.
    """
    set_up_logging(settings.log_level, settings.log_format)
    typer.echo(f"settings: {shown(settings)}")
    with contextlib.ExitStack() as listeners:
        public = listeners.enter_context(_listen("", settings.host, settings.port))
        admin = None
        if settings.admin:
            _warn_if_open(settings)
            address = ("admin_", settings.admin_host, settings.admin_port)
            admin = listeners.enter_context(_listen(*address))
        keys = None if settings.keys is None else Keys(settings.keys)
        models = ModelStore.open(settings)
        for model in models.all():
            _print_model(model)
        app = create_app(settings, models, keys)
        _PublicServer(app, settings, admin).run(sockets=[public])


class _GuardedServer(uvicorn.Server):
    """uvicorn that cuts off slow clients, until its last connection is closed."""

    def __init__(self, app: FastAPI, settings: Settings, lifespan: LifespanType) -> None:
        self._limits = ConnectionLimits(
            header_timeout_s=settings.header_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            min_bytes_per_s=settings.min_bytes_per_s,
            max_header_bytes=settings.max_header_bytes,
            max_connections=settings.max_connections,
        )
        self._look: asyncio.Task[None] | None = None
        protocol = functools.partial(
            GuardedConnection, limits=self._limits, service=lambda: app.state.service
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(type[asyncio.Protocol], protocol),
                ws="none",
                lifespan=lifespan,
                log_config=None,
                access_log=False,  # request_log.py writes that line
                server_header=False,
                timeout_keep_alive=math.ceil(settings.keep_alive_s),
                timeout_graceful_shutdown=math.ceil(settings.request_timeout_s),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._look = asyncio.create_task(look_at_all(self.server_state.connections, self._limits))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        if self._look is not None:
            self._look.cancel()


class _AdminServer(_GuardedServer):
    """Leaves the signals, and the start and end of the service, to the public server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _PublicServer(_GuardedServer):
    """SIGTERM first means "not ready" for drain_s, then the requests inside are finished.

    The admin listener runs in the same event loop, from when the service is there until it has
    finished its last request.
    """

    def __init__(self, app: FastAPI, settings: Settings, admin: socket.socket | None) -> None:
        super().__init__(app, settings, lifespan="on")
        self._app = app
        self._settings = settings
        self._admin_socket = admin
        self._admin: tuple[_AdminServer, asyncio.Task[None]] | None = None
        self._stop_s = math.inf  # time.monotonic() at which the listener is closed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.started:
            return
        assert sockets is not None
        if self._admin_socket is not None:
            admin_app = create_admin_app(self._app.state.service, self._app.state.keys)
            admin = _AdminServer(admin_app, self._settings, "off")
            task = asyncio.create_task(admin.serve(sockets=[self._admin_socket]))
            self._admin = (admin, task)
            typer.echo(f"admin: {_url(self._admin_socket)}/metrics")
        url = _url(sockets[0])
        typer.echo(f"ready: curl -F image=@IMAGE {url}/v1/detect   (try it: {url}/)")

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._stop_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        if self._admin is not None:
            admin, task = self._admin
            admin.should_exit = admin.force_exit = True
            await task

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        service: DetectService | None = getattr(self._app.state, "service", None)
        if service is None or service.draining:  # too early to be asked nicely, or asked twice
            connections = cast(set[GuardedConnection], self.server_state.connections)
            unanswered = sum(connection.answering for connection in connections)
            os.write(2, f"stopped at once, {unanswered} requests not answered\n".encode())
            os._exit(1 if unanswered else 0)  # no thread that hangs in an engine is waited for
        service.draining = True
        drain_s = 0.0 if sig == signal.SIGINT else self._settings.drain_s
        self._stop_s = time.monotonic() + drain_s


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


def _warn_if_open(settings: Settings) -> None:
    if settings.keys is None and settings.admin_host not in ("127.0.0.1", "::1", "localhost"):
        log.warning(
            "admin_host=%s without keys: whoever reaches it may load and unload models; set keys",
            settings.admin_host,
        )


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

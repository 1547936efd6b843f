"""Every setting of a service process, with its default and its meaning.

Where the values come from: configuration.py.  Facts about a model (classes, thresholds, sizes) are
never settings; they come with its bundle.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from clq_serve.cores import allowed_cores
from clq_serve.cors import parse_origins
from clq_serve.devices import (
    DeviceKind,
    GpuOptions,
    Place,
    lane_places,
    parse_devices,
    wide_place,
)
from clq_serve.jobs import Policy
from clq_serve.preprocess import ImageLimits

PREFIX = "CLQ_SERVE_"


class Settings(BaseModel):
    """Settings of one process; the field `port` is the variable CLQ_SERVE_PORT, and so on.

    The text below each field is its description, which `docs/settings.md` shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address of the public listener."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the public listener; 0 is any free one, printed at start."""
    admin: bool = True
    """Whether there is a second listener, with metrics, debugging and model control."""
    admin_host: str = "127.0.0.1"
    """Address of the admin listener."""
    admin_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the admin listener; 0 is any free one, printed at start, so that several services on
    one machine never collide."""
    bundle: Path | None = None
    """Folder NAME/VERSION of the one bundle to serve; without it, and without `models`, a built-in
    model."""
    builtin: Literal["webui-nano", "webui-nano-int8", "webui-small"] = "webui-nano"
    """Which built-in model, where neither `bundle` nor `models` is given: the default, or the same
    in 8 bits, faster where the processor has 8-bit dot products, or the larger one, which is better
    on small things."""
    models: Path | None = None
    """Folder of bundles NAME/VERSION: of each name the newest version is served."""
    default_model: str | None = None
    """Name of the model for requests that name none; without it the first by name."""
    versions_kept: Annotated[int, Field(ge=1)] = 1
    """How many versions of one name are loaded at most; one more closes the oldest."""
    watch_models_s: Annotated[float, Field(ge=0)] = 0.0
    """How often the folder `models` is looked at, to load what is new or changed in it and unload
    what is gone; 0 is never."""
    threads: Annotated[int, Field(ge=1)] = Field(default_factory=allowed_cores)
    """CPU cores to use; the default is what the process is allowed."""
    device: str = "cpu"
    """Where models run: `cpu`, or `cuda:N`, `tensorrt:N` or `plan:N` with the number of a GPU,
    several by commas; see docs/models.md."""
    sessions_per_device: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Engines of each model on each device, which run at the same time; without it one of one
    thread for each of `threads` on the CPU, and one on a GPU."""
    wide_session: bool = True
    """On the CPU: one more engine that uses all `threads`, for an image that is alone."""
    spinning: bool = False
    """On the CPU: threads of an engine wait for its next run by spinning."""
    tf32: bool = False
    """On a GPU: float32 may be computed in TF32, faster and less exactly."""
    engine_cache: Path | None = None
    """On a GPU: folder for TensorRT engines, which are derived from the bundles."""
    cuda_graphs: bool = True
    """With `plan:N`: each input shape is run as one CUDA graph from its second time on."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 20 * 2**20
    """Largest request body."""
    public_model_control: bool = False
    """Whether the public port lets /v2 load and unload models and change the log level."""
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Largest image, in pixels."""
    max_side: Annotated[int, Field(ge=1)] = 16_384
    """Longest side of an image, in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] = 200.0
    """Thinnest image: longer side over shorter side."""
    max_frames: Annotated[int, Field(ge=1)] = 1_000
    """Frames of an animation; only the first is looked at, and 1 refuses animations."""
    max_images_per_request: Annotated[int, Field(ge=1)] = 32
    """Images in one request, of /v1/detect/batch and of /v2."""
    response_cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory for answers that are given again for the same image, model and options; 0 is none."""
    max_pending: Annotated[int, Field(ge=1)] = 32
    """Requests inside at a time; one more is answered 503."""
    max_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images that one call of a model takes; `auto` is 1 on a CPU, where batches gain nothing, and
    8 on a GPU."""
    batch_pixels: Annotated[int, Field(ge=1)] = 16_000_000
    """Padded pixels that one call of a model takes; an image that is larger runs alone."""
    batch_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    """How long a free engine waits for a batch to fill; 0 takes what is there."""
    queue_images: Annotated[int, Field(ge=1)] = 64
    """Images that wait for an engine or are being decoded, at most; one more is answered 503."""
    queue_pixels: Annotated[int, Field(ge=1)] = 256_000_000
    """The same in padded pixels."""
    queue_bytes: Annotated[int, Field(ge=1)] = 2**30
    """The same in bytes: of uploads that are being decoded, and of pixels that wait."""
    decode_threads: Annotated[int | None, Field(ge=1)] = None
    """Images that are decoded at the same time; without it `threads`, at most 4."""
    decode_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes of their own that decode, instead of threads of the service: an image that crashes
    the decoder then costs its own request and no other. Linux only."""
    decode_memory_bytes: Annotated[int, Field(ge=2**26)] = 2**30
    """Memory that each of those processes may use; an image that needs more is answered 413."""
    engine_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """An engine that has not answered after this time is taken for dead and rebuilt."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """The most that a request gets from its start to its answer."""
    header_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """From the connection, or the first byte of a further request, until its headers are complete;
    a slower client is cut off."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """How far a body, or the reading of an answer, may be behind `min_bytes_per_s`; a slower client
    is cut off (408 if it was sending)."""
    min_bytes_per_s: Annotated[float, Field(gt=0)] = 1024.0
    """The slowest pace at which a body is sent or an answer is read."""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**10
    """Most bytes of the headers of a request, or between two pieces of a body."""
    keep_alive_s: Annotated[float, Field(gt=0)] = 75.0
    """How long a connection may be idle between two requests: longer than a load balancer keeps
    it, so that it is not the service that closes first."""
    max_connections: Annotated[int, Field(ge=1)] = 1000
    """Open connections; one more is answered 503 and closed."""
    drain_s: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM: how long the service is not ready but still accepts requests, until the load
    balancer has noticed; then the requests inside are finished, which takes `request_timeout_s` at
    most.  A second signal ends the process at once."""
    cors_origins: str = ""
    """Whose pages may call the public listener from a browser: origins by commas, e.g.
    `https://app.example`, or `*` for all; without it only the service's own page."""
    keys: Path | None = None
    """TOML file of API keys, made by `clq-serve keys new`; without it everybody may ask."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are logged."""
    log_format: Literal["text", "json"] = "text"
    """Lines of text, or one JSON object a line."""
    otel_endpoint: str | None = None
    """Receiver of OpenTelemetry spans (OTLP over HTTP), e.g. http://127.0.0.1:4318; the standard
    OTEL_EXPORTER_OTLP_ENDPOINT counts too.  Needs the extra clq-serve[otel]."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        parse_origins(value)
        return value

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        parse_devices(value)
        return value

    @property
    def lane_places(self) -> tuple[Place, ...]:
        """One place for each lane."""
        return lane_places(parse_devices(self.device), self.sessions_per_device, self.threads)

    @property
    def wide_place(self) -> Place | None:
        """Where an image that is alone runs with all cores, if not in a lane."""
        return wide_place(self.lane_places, self.threads) if self.wide_session else None

    @property
    def largest_batch(self) -> int:
        """`max_batch`, decided."""
        if self.max_batch != "auto":
            return self.max_batch
        return 1 if self.lane_places[0].device.kind is DeviceKind.CPU else 8

    @property
    def gpu_options(self) -> GpuOptions:
        """The part that engines on a GPU are built with."""
        return GpuOptions(
            max_batch=self.largest_batch,
            tf32=self.tf32,
            cache=self.engine_cache,
            cuda_graphs=self.cuda_graphs,
        )

    @property
    def decoder_threads(self) -> int:
        """How many images are decoded at the same time."""
        return self.decode_threads or min(self.threads, 4)

    @property
    def policy(self) -> Policy:
        """The part that the scheduler needs."""
        return Policy(
            lanes=len(self.lane_places),
            max_batch=self.largest_batch,
            batch_pixels=self.batch_pixels,
            batch_delay_s=self.batch_delay_ms / 1e3,
            queue_images=self.queue_images,
            queue_pixels=self.queue_pixels,
            queue_bytes=self.queue_bytes,
            decoders=self.decode_workers or self.decoder_threads,
        )

    @property
    def image_limits(self) -> ImageLimits:
        """The part that decides which images are too large."""
        return ImageLimits(self.max_pixels, self.max_side, self.max_aspect, self.max_frames)

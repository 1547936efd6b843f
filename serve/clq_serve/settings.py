"""Every setting of a service process, with its default and its meaning.

Where the values come from: configuration.py.  Facts about a model (classes, thresholds, sizes) are
never settings; they come with its bundle.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clq_serve.cores import allowed_cores
from clq_serve.preprocess import ImageLimits
from clq_serve.scheduler import Policy

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
    """Folder NAME/VERSION of the one bundle to serve; without it, and without `models`, the
    built-in model."""
    models: Path | None = None
    """Folder of bundles NAME/VERSION: of each name the newest version is served."""
    default_model: str | None = None
    """Name of the model for requests that name none; without it the first by name."""
    versions_kept: Annotated[int, Field(ge=1)] = 1
    """How many versions of one name are loaded at most; one more closes the oldest."""
    threads: Annotated[int, Field(ge=1)] = Field(default_factory=allowed_cores)
    """CPU cores to use; the default is what the process is allowed."""
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
    """Images in one request."""
    max_pending: Annotated[int, Field(ge=1)] = 32
    """Requests inside at a time; one more is answered 503."""
    lanes: Annotated[int | None, Field(ge=1)] = None
    """Engines that run at the same time, each in a thread of its own; without it `threads`, because
    on a CPU that many engines of one thread do more than one engine of that many threads."""
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
    engine_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """An engine that has not answered after this time is taken for dead and rebuilt."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """The most that a request gets from its start to its answer."""
    drain_s: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM: how long the service is not ready but still accepts requests."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are logged."""

    @property
    def engine_lanes(self) -> int:
        """How many engines of each model run at the same time."""
        return self.lanes or self.threads

    @property
    def decoder_threads(self) -> int:
        """How many images are decoded at the same time."""
        return self.decode_threads or min(self.threads, 4)

    @property
    def policy(self) -> Policy:
        """The part that the scheduler needs."""
        return Policy(
            lanes=self.engine_lanes,
            max_batch=1 if self.max_batch == "auto" else self.max_batch,
            batch_pixels=self.batch_pixels,
            batch_delay_s=self.batch_delay_ms / 1e3,
            queue_images=self.queue_images,
            queue_pixels=self.queue_pixels,
            queue_bytes=self.queue_bytes,
        )

    @property
    def image_limits(self) -> ImageLimits:
        """The part that decides which images are too large."""
        return ImageLimits(self.max_pixels, self.max_side, self.max_aspect, self.max_frames)

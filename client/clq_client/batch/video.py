"""The frames of a video as images.  Needs PyAV: pip install "clq-client[video]"."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clq_client.images import image_bytes
from clq_client.inputs import InputError
from clq_client.run import Frame

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Which frames: every Nth from the first, or so many a second; one of the two is set."""

    every: int | None = None
    fps: float | None = None


def require_av() -> None:
    """Raises InputError where PyAV is missing."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError('videos need PyAV: pip install "clq-client[video]"') from error


def frames(
    path: Path, key: str, choice: FrameChoice
) -> Iterator[tuple[Frame | None, bytes | OSError]]:
    """(place, PNG file) of each chosen frame, upright; (None, reason) where the video ends badly.

    Frames are counted from 0 as they are shown.  With `fps`, of each 1/fps seconds the first
    frame is taken, so that a video of fewer frames a second gives all it has.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                yield None, OSError(f"{path}: has no video stream")
                return
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            taken = -1
            for index, picture in enumerate(container.decode(stream)):
                time_s = float(picture.time or 0.0)
                if choice.fps is None:
                    wanted = index % (choice.every or 1) == 0
                else:
                    tick = math.floor(time_s * choice.fps + 1e-6)
                    wanted, taken = tick > taken, max(tick, taken)
                if wanted:
                    image = picture.to_image()  # type: ignore[no-untyped-call]
                    if picture.rotation:
                        image = image.rotate(picture.rotation, expand=True)
                    yield Frame(key, index, round(time_s, 6)), image_bytes(image)
    except (av.FFmpegError, OSError) as error:
        yield None, OSError(f"{path}: the video cannot be read: {error}")

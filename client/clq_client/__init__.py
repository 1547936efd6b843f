"""Client of the CLQ detection service.

    from clq_client import Client

    with Client("http://127.0.0.1:8000") as client:
        result = client.detect("screenshot.png", score=0.3)
    for found in result.detections:
        print(found.label, found.score, found.box)

`AsyncClient` has the same methods as coroutines.  Everything that goes wrong on the way to the
service or in it is a `ClqError`; the tree is in `clq_client.errors`.
"""

from importlib.metadata import version

from clq_client.async_client import AsyncClient
from clq_client.client import Client
from clq_client.errors import (
    BadRequest,
    ClqError,
    ConnectionFailed,
    DeadlineExceeded,
    ImageRefused,
    NotAllowed,
    NotReady,
    Overloaded,
    ServerFault,
    UnexpectedAnswer,
    UnknownModel,
)
from clq_client.results import Detection, DetectResult, ImageInfo, Label, ModelInfo, Timing

__version__ = version("clq-client")

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "ClqError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DetectResult",
    "Detection",
    "ImageInfo",
    "ImageRefused",
    "Label",
    "ModelInfo",
    "NotAllowed",
    "NotReady",
    "Overloaded",
    "ServerFault",
    "Timing",
    "UnexpectedAnswer",
    "UnknownModel",
    "__version__",
]

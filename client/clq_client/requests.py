"""Requests to the service and what its answers mean; no connection in here.

Both clients, sync and async, are these functions around one HTTP call.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from clq_client.errors import ClqError, UnexpectedAnswer, error_class
from clq_client.results import DetectResult, Fields, Label, ModelInfo, model_info
from clq_client.retry import retry_after_s
from clq_client.settings import ClientSettings

_MOST_MS = 999_999_999  # what fits the header; 11 days
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Request:
    """One call, `path` below the base URL; sent again it keeps its request_id."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    traceparent: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def headers(self, settings: ClientSettings, timeout_s: float) -> dict[str, str]:
        """The headers of an attempt that has timeout_s left."""
        headers = {"X-Request-ID": self.request_id, "Accept": "application/json"}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        if self.traceparent is not None:
            headers["traceparent"] = self.traceparent
        if self.content is not None:
            # The service looks at the bytes, so there is no type to guess and no name to leak.
            headers["Content-Type"] = "application/octet-stream"
            headers["X-Request-Timeout-Ms"] = str(max(1, int(min(timeout_s * 1000, _MOST_MS))))
            if settings.priority is not None:
                headers["X-Priority"] = settings.priority
        return headers


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def info_request(path: str) -> Request:
    """GET of something that the service tells about itself."""
    return Request("GET", path)


def labels_request(settings: ClientSettings) -> Request:
    """GET of the classes of the chosen model."""
    return Request("GET", f"{settings.model_path}/labels")


def detect_request(
    settings: ClientSettings,
    content: bytes,
    score: float | None,
    iou: float | None,
    max: int | None,
    classes: Sequence[str] | None,
    traceparent: str | None,
) -> Request:
    """POST of the image to the chosen model.  What is None is left to the service.

    Ranges are the service's to judge.  Raises ValueError for classes and a traceparent that
    cannot be sent.
    """
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        raise ValueError(f"traceparent: {traceparent!r}; accepted: as W3C Trace Context says")
    params: list[tuple[str, str]] = []
    if score is not None:
        params.append(("score", str(float(score))))
    if iou is not None:
        params.append(("iou", str(float(iou))))
    if max is not None:
        params.append(("max", str(max)))
    if classes is not None:
        check_classes(classes)
        params.append(("classes", ",".join(classes)))
    path = f"{settings.model_path}/detect"
    return Request("POST", path, tuple(params), content, traceparent)


def check_classes(classes: Sequence[str] | None) -> None:
    """Raises ValueError for classes that cannot be sent."""
    if isinstance(classes, str):
        raise ValueError(f"classes: {classes!r} is one string; accepted: a list of names")
    for name in classes or ():
        if not name or "," in name:
            raise ValueError(f"classes: {name!r} cannot be sent; accepted: names without commas")
    if classes is not None and not classes:
        raise ValueError("classes: the list is empty; accepted: None for all, or some names")


def parse_detect(answer: Answer) -> DetectResult:
    with _about(answer):
        return DetectResult.from_json(_json(answer))


def parse_models(answer: Answer) -> tuple[ModelInfo, ...]:
    with _about(answer):
        return tuple(model_info(item) for item in Fields(_json(answer), "").children("models"))


def parse_labels(answer: Answer) -> tuple[Label, ...]:
    with _about(answer):
        items = Fields(_json(answer), "").children("labels")
        for index, item in enumerate(items):
            if item.whole("class_id", least=0) != index:
                raise UnexpectedAnswer(f"answer: labels[{index}].class_id: is not {index}")
        return tuple(
            Label(index, item.text("label"), item.whole("category_id", least=0))
            for index, item in enumerate(items)
        )


def raise_for_status(answer: Answer, request: Request) -> None:
    """Raises the ClqError that the answer means, if its status is not 200."""
    if answer.status != 200:
        raise error_of(answer, request)


def error_of(answer: Answer, request: Request) -> ClqError:
    """The exception for an answer that is not 200, whether or not its body is a problem."""
    problem = _problem(answer)
    code = _text(problem, "code")
    detail = _text(problem, "detail") or _text(problem, "title")
    detail = detail or f"{request.method} {request.path} was answered with status {answer.status}"
    return error_class(answer.status, code)(
        detail,
        status=answer.status,
        code=code,
        request_id=_request_id(answer, request, problem),
        retry_after_s=retry_after_s(answer.headers.get("retry-after")),
    )


@contextmanager
def _about(answer: Answer) -> Iterator[None]:
    """Tells an UnexpectedAnswer which answer it is about."""
    try:
        yield
    except UnexpectedAnswer as error:
        error.status = answer.status
        error.request_id = answer.headers.get("x-request-id", "")
        raise


def _json(answer: Answer) -> object:
    try:
        # NaN and Infinity are no JSON, though Python's reader would take them.
        value: object = json.loads(answer.body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        kind = answer.headers.get("content-type", "no content type")
        raise UnexpectedAnswer(
            f"the answer ({kind}, {len(answer.body)} bytes) is no JSON; is the URL right? ({error})"
        ) from error
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _problem(answer: Answer) -> dict[str, object]:
    """The members of the problem; {} for a body that is none, e.g. a proxy's page."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/problem+json", "application/json"):
        return {}
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(problem: dict[str, object], key: str) -> str:
    value = problem.get(key)
    return value if isinstance(value, str) else ""


def _request_id(answer: Answer, request: Request, problem: dict[str, object]) -> str:
    return answer.headers.get("x-request-id") or _text(problem, "request_id") or request.request_id

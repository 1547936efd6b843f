"""Every exception this package raises about the service.

ClqError
├── ConnectionFailed    no answer: refused, cut, not resolved, not an HTTP server
├── NotAllowed          401 without a valid key, 403 with one that may not do this
├── UnknownModel        404 about a model: no such name or version is loaded
├── BadRequest          400, 422 about a parameter, and every other 4xx
├── ImageRefused        413, 415, and 422 about the image: too large, other format, damaged
├── Overloaded          429, and 503 with the code "overloaded"
├── NotReady            every other 503: starting, stopping
├── DeadlineExceeded    408, 504, and the deadline of the client's own call
├── ServerFault         500, 502 and every other 5xx
└── UnexpectedAnswer    an answer that no CLQ service gives; mostly the URL is another server's

Mistakes that never reach the service are Python's own: FileNotFoundError for a path, TypeError for
something that is not an image, ValueError for a URL or an option that cannot be sent.
"""

IMAGE_CODES = frozenset({"truncated", "corrupt"})  # the codes of 422 that are about the image


class ClqError(Exception):
    """One call failed.

    status         HTTP status, None where there was no answer
    code           stable word for programs, e.g. "truncated"; "" where the answer had none
    detail         one sentence for a person
    request_id     what to look for in the log of the service
    retry_after_s  what the service asked for, None where it did not ask
    attempts       how often the call was sent
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        code: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.attempts = 1

    def __str__(self) -> str:
        head = " ".join(str(part) for part in (self.status, self.code) if part)
        tail = [f"request {self.request_id}"] if self.request_id else []
        tail += [f"{self.attempts} attempts"] if self.attempts > 1 else []
        text = f"{head}: {self.detail}" if head else self.detail
        return f"{text} ({', '.join(tail)})" if tail else text

    def to_dict(self) -> dict[str, object]:
        """The error as JSON takes it: type, status, code, detail, request_id."""
        return {
            "type": type(self).__name__,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": self.request_id,
        }


class ConnectionFailed(ClqError):
    """The service gave no complete answer."""


class BadRequest(ClqError):
    """The request is wrong and will stay wrong."""


class NotAllowed(ClqError):
    """The service wants an API key, or another one."""


class UnknownModel(ClqError):
    """The service has no model of that name and version."""


class ImageRefused(ClqError):
    """The service does not take this image."""


class Overloaded(ClqError):
    """Too many requests are waiting; later may work."""


class NotReady(ClqError):
    """The service is starting or stopping; later may work."""


class DeadlineExceeded(ClqError):
    """No result in time."""


class ServerFault(ClqError):
    """The service, or a proxy before it, is broken."""


class UnexpectedAnswer(ClqError):
    """The answer is not what the interface says."""


def error_class(status: int, code: str) -> type[ClqError]:
    """The exception for an answer with `status`, whose problem has `code` ("" = none)."""
    if status in (401, 403):
        return NotAllowed
    if status == 404 and code == "unknown_model":
        return UnknownModel
    if status in (413, 415) or (status == 422 and code in IMAGE_CODES):
        return ImageRefused
    if status == 429 or (status == 503 and code == "overloaded"):
        return Overloaded
    if status == 503:
        return NotReady
    if status in (408, 504):
        return DeadlineExceeded
    if 400 <= status < 500:
        return BadRequest
    if 500 <= status < 600:
        return ServerFault
    return UnexpectedAnswer

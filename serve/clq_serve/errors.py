"""Every exception this package raises on purpose.

ClqServeError
├── BundleError            a bundle is not what its manifest says; refuses to start
├── EngineError            the engine was given an input it does not take, or fails
├── SettingsError          a CLQ_SERVE_* variable or a flag is wrong; refuses to start
└── ServeError             one request gets a problem answer with `status` and `code`
    ├── BadRequest         400  no image, an empty body, a malformed or ambiguous form
    ├── BadInferRequest    400  a request of the Open Inference Protocol is malformed
    ├── NoKey              401  no API key, or one that is not known
    ├── WrongScope         403  the API key is not good for this
    ├── Forbidden          403  not allowed here, whoever asks
    ├── UnknownModel       404  no model of that name or version is loaded
    ├── ModelBusy          409  the model is being loaded already
    ├── LastVersion        409  the default model would have no version left
    ├── NotAcceptable      406  no answer of a type that the Accept header names
    ├── UploadTimeout      408  the body did not arrive in time
    ├── BodyTooLarge       413  more bytes than the service takes
    ├── WrongContentType   415  the body is neither a form nor JSON nor an image
    ├── UnsupportedEncoding 415 the body is compressed in a way that is not accepted
    ├── BadParameter       422  a query parameter is unknown, repeated or out of range
    ├── ModelRefused       422  a bundle that must not be served; what was loaded stays
    ├── KeyOverRate        429  the API key makes more requests a second than it may
    ├── KeyBusy            429  as many requests with the API key are inside as may be
    ├── ClientLeft         499  nobody is waiting for the answer any more (seen in the log only)
    ├── Unavailable        503  too many requests are pending, or too long a queue
    │   └── EngineDown     503  the engine that should answer does not work
    ├── DeadlineExceeded   504  no result in time; says in which stage the time ran out
    └── ImageError              the bytes of the image are the problem
        ├── ImageTooLarge      413  more pixels, a longer or a thinner side, than is accepted
        ├── UnsupportedImage   415  not one of the accepted image formats
        ├── TooManyFrames      422  an animation with more frames than the service takes
        ├── TruncatedImage     422  the end of the file is missing
        ├── CorruptImage       422  the bytes do not decode
        └── DecoderCrashed     422  the process that decoded the image died with it
"""

from typing import ClassVar

Extra = str | int | float | list[str]


class ClqServeError(Exception):
    """Base of all exceptions of this package."""


class BundleError(ClqServeError):
    """A bundle that must not be served.  The message names the file and, if any, the key."""


class EngineError(ClqServeError):
    """A call of the engine, or its result, breaks the contract; never the client's fault."""


class SettingsError(ClqServeError):
    """A setting is unknown or wrong.  The message names it and what is accepted."""


class ServeError(ClqServeError):
    """One request ends with a problem answer.

    status, code, title   fixed per kind; `code` is the stable word that programs may branch on
    detail                one sentence for a person: what was wrong, the value, what is accepted
    extra                 further members of the problem, e.g. `limit` and `observed`
    more_headers          of this answer, beside those of the kind
    """

    status: ClassVar[int] = 500
    code: str = "internal"
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[dict[str, str]] = {}  # of every answer of the kind

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        extra: dict[str, Extra] | None = None,
        more_headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.extra: dict[str, Extra] = extra or {}
        self.more_headers: dict[str, str] = more_headers or {}


class BadRequest(ServeError):
    status = 400
    code = "bad_request"
    title = "Bad request"


class BadInferRequest(ServeError):
    status = 400
    code = "bad_infer_request"
    title = "Bad inference request"


class NoKey(ServeError):
    status = 401
    code = "no_key"
    title = "An API key is needed"


class WrongScope(ServeError):
    status = 403
    code = "wrong_scope"
    title = "The API key is not good for this"


class KeyOverRate(ServeError):
    status = 429
    code = "key_over_rate"
    title = "Too many requests a second with this API key"


class KeyBusy(ServeError):
    status = 429
    code = "key_busy"
    title = "Too many requests at a time with this API key"


class Forbidden(ServeError):
    status = 403
    code = "forbidden"
    title = "Not allowed"


class UnknownModel(ServeError):
    status = 404
    code = "unknown_model"
    title = "There is no such model"


class ModelBusy(ServeError):
    status = 409
    code = "model_busy"
    title = "The model is being loaded"


class LastVersion(ServeError):
    status = 409
    code = "last_version"
    title = "The default model needs a version"


class ModelRefused(ServeError):
    status = 422
    code = "model_refused"
    title = "The bundle must not be served"


class NotAcceptable(ServeError):
    status = 406
    code = "not_acceptable"
    title = "There is no answer of an accepted type"


class UploadTimeout(ServeError):
    status = 408
    code = "upload_timeout"
    title = "The body did not arrive in time"


class BodyTooLarge(ServeError):
    status = 413
    code = "body_too_large"
    title = "The body has too many bytes"


class WrongContentType(ServeError):
    status = 415
    code = "wrong_content_type"
    title = "The content type is not accepted"


class UnsupportedEncoding(ServeError):
    status = 415
    code = "unsupported_encoding"
    title = "The content encoding is not accepted"
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": "gzip, deflate"}  # RFC 9110, 15.5.16


class BadParameter(ServeError):
    status = 422
    code = "bad_parameter"
    title = "A parameter is wrong"


class ClientLeft(ServeError):
    status = 499
    code = "client_left"
    title = "The client closed the connection"


class Unavailable(ServeError):
    status = 503
    code = "overloaded"
    title = "The service cannot take the request now"


class EngineDown(Unavailable):
    code = "engine_down"
    title = "The engine does not work"


class DeadlineExceeded(ServeError):
    status = 504
    code = "deadline_exceeded"
    title = "No result in time"


class ImageError(ServeError):
    """The bytes of the image are the problem, not the request around them."""


class ImageTooLarge(ImageError):
    status = 413
    code = "image_too_large"
    title = "The image has too many pixels"


class UnsupportedImage(ImageError):
    status = 415
    code = "unsupported_image"
    title = "The image format is not accepted"


class TooManyFrames(ImageError):
    status = 422
    code = "too_many_frames"
    title = "The animation has too many frames"


class TruncatedImage(ImageError):
    status = 422
    code = "truncated"
    title = "The end of the image is missing"


class CorruptImage(ImageError):
    status = 422
    code = "corrupt"
    title = "The image does not decode"


class DecoderCrashed(ImageError):
    status = 422
    code = "decoder_crashed"
    title = "The process that decoded the image died"

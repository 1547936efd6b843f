"""The bodies of all answers, as documented in /openapi.json."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clq_serve.bundle import Metric, Thresholds

Score = Annotated[float, Field(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, Field(ge=0.0, description="milliseconds")]


class Answer(BaseModel):
    """An answer is fixed once made, and has no members beyond the documented ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(Answer):
    """Which model answered."""

    name: str
    version: int
    digest: Annotated[str, Field(description="sha256:<hex> of model.onnx")]


class ImageInfo(Answer):
    """What was uploaded."""

    width: Annotated[int, Field(description="of the upright image, pixels")]
    height: Annotated[int, Field(description="of the upright image, pixels")]
    orientation_applied: Annotated[
        bool, Field(description="whether the EXIF orientation turned or mirrored the image")
    ]
    format: Annotated[str, Field(description="judged by the bytes: JPEG, PNG, WEBP, AVIF or BMP")]
    sha256: Annotated[str, Field(description="hex digest of the uploaded bytes")]


class Detection(Answer):
    """One detected object."""

    box: Annotated[
        tuple[float, float, float, float],
        Field(
            description="x1, y1, x2, y2 in pixels of the upright image, origin top left, clipped; "
            "or as box_format asks"
        ),
    ]
    score: Annotated[Score, Field(description="cls_score * quality ** alpha; ranks the list")]
    class_id: Annotated[int, Field(description="index in /v1/labels")]
    label: str
    quality: Annotated[Score, Field(description="predicted quality of the box; 1 if not predicted")]
    cls_score: Annotated[Score, Field(description="probability of the class")]


class Timing(Answer):
    """Where the time went."""

    decode: Annotated[Milliseconds, Field(description="decoding, resizing and padding, ms")]
    queue: Annotated[Milliseconds, Field(description="waiting for the engine, ms")]
    infer: Annotated[Milliseconds, Field(description="the model, ms")]
    post: Annotated[Milliseconds, Field(description="suppression and mapping back, ms")]
    total: Annotated[Milliseconds, Field(description="all of it and reading the body, ms")]
    batch_size: Annotated[int, Field(description="images that shared the call of the model")]


class DetectAnswer(Answer):
    """Answer of POST /v1/detect in the format json."""

    id: Annotated[str, Field(description="request id, equal to the X-Request-ID header")]
    model: ModelRef
    image: ImageInfo
    box_format: Annotated[str, Field(description="of every box: xyxy, xywh, cxcywh or norm")]
    detections: Annotated[tuple[Detection, ...], Field(description="by descending score")]
    timing_ms: Timing


class CocoResult(Answer):
    """One item of the answer of POST /v1/detect?format=coco."""

    image_id: int | str
    category_id: Annotated[int, Field(description="id of the class in the training data set")]
    bbox: Annotated[tuple[float, float, float, float], Field(description="x, y, width, height")]
    score: Score


class ItemAnswer(DetectAnswer):
    """An image of POST /v1/detect/batch that was answered; id is the request's, and its index."""

    ok: Literal[True]


class DeepStackPrediction(Answer):
    """One object, as DeepStack tells it; whole pixels."""

    label: str
    confidence: Score
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class DeepStackAnswer(Answer):
    """Answer of POST /v1/vision/detection."""

    success: Literal[True]
    predictions: tuple[DeepStackPrediction, ...]
    duration: Annotated[float, Field(description="seconds")]


class ModelInfo(ModelRef):
    """One served model."""

    classes: tuple[str, ...]
    thresholds: Thresholds
    alpha: Annotated[float, Field(ge=0.0, description="score = cls_score * quality ** alpha")]
    trained_on: str
    metrics: tuple[Metric, ...]
    licence: str
    provider: Annotated[str, Field(description="what runs it: an ONNX Runtime provider, TensorRT")]
    placement: Annotated[str, Field(description="devices, lanes and threads, for a person")]


class ModelsAnswer(Answer):
    """Answer of GET /v1/models."""

    models: tuple[ModelInfo, ...]


class ModelLine(Answer):
    """One model of the repository."""

    name: str
    version: int
    state: Annotated[str, Field(description="READY, LOADING, UNLOADING or UNAVAILABLE")]
    reason: Annotated[str, Field(description="why it is not ready, or why a reload failed")]
    digest: Annotated[str, Field(description="sha256:<hex> of the loaded model.onnx, or empty")]
    default: Annotated[bool, Field(description="whether requests that name no model get it")]


class ModelIndex(Answer):
    """Answer of the admin routes of models."""

    models: tuple[ModelLine, ...]


class Label(Answer):
    """One class of the model."""

    class_id: int
    label: str
    category_id: Annotated[int, Field(description="id of the class in the training data set")]


class LabelsAnswer(Answer):
    """Answer of GET /v1/labels."""

    labels: tuple[Label, ...]


class StatusAnswer(Answer):
    """Answer of GET /ping, as TorchServe has it."""

    status: str


class HealthAnswer(Answer):
    """Answer of /startupz, /healthz and /readyz, when they are content."""

    status: Annotated[str, Field(description="alive, started or ready")]
    uptime_s: Annotated[float, Field(description="seconds since the models were loaded")]
    draining: Annotated[bool, Field(description="whether the service is stopping")]
    models: Annotated[tuple[str, ...], Field(description="NAME/VERSION of what is loaded")]
    troubles: Annotated[tuple[str, ...], Field(description="lanes that are out of order")]


class Problem(BaseModel):
    """Every error: RFC 9457, application/problem+json.  Branch on `code`, not on the texts."""

    type: Annotated[str, Field(description="/docs#<code>")]
    title: str
    status: int
    detail: str
    instance: Annotated[str, Field(description="path of the request")]
    code: Annotated[str, Field(description="stable word for this kind of problem")]
    request_id: str
    parameter: Annotated[str | None, Field(description="the query parameter at fault")] = None
    accepted: Annotated[list[str] | None, Field(description="what would be accepted")] = None
    limit: Annotated[float | None, Field(description="the limit that was exceeded")] = None
    observed: Annotated[float | None, Field(description="what was found instead")] = None
    stage: Annotated[str | None, Field(description="where the time ran out")] = None
    retry_after: Annotated[int | None, Field(description="seconds, as in Retry-After")] = None
    success: Annotated[Literal[False] | None, Field(description="of /v1/vision/detection")] = None
    error: Annotated[str | None, Field(description="the same, as `detail`; and of /v2")] = None


class FailedItem(Answer):
    """An image of POST /v1/detect/batch that was refused; the others are not touched by it."""

    ok: Literal[False]
    problem: Problem

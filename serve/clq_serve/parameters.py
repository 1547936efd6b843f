"""The options of a request: from its query, its body and its headers, checked and merged."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from clq_serve.bundle import Manifest
from clq_serve.detector import DetectOptions
from clq_serve.errors import BadParameter
from clq_serve.formats import BoxFormat, Format
from clq_serve.service import Priority

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
PRIORITY_HEADER = "X-Priority"


class DetectParameters(BaseModel):
    """Options of one request; what is not given comes from the model's manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    score: Annotated[
        float | None, Field(ge=0, le=1, description="give detections with a score above this")
    ] = None
    iou: Annotated[
        float | None, Field(ge=0, le=1, description="IoU above which the weaker box is dropped")
    ] = None
    max: Annotated[int | None, Field(ge=1, le=1000, description="how many detections at most")] = (
        None
    )
    classes: Annotated[
        str | None,
        Field(description="names or class_ids of /v1/labels, separated by commas; all if absent"),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(
            description="`interactive` goes before `bulk`; interactive for one image, bulk for many"
        ),
    ] = None
    format: Annotated[
        Format | None,
        Field(description="`image`: the picture with its boxes; by the Accept header if absent"),
    ] = None
    box_format: Annotated[
        BoxFormat,
        Field(description="of format=json; cxcywh has the centre, norm is xyxy from 0 to 1"),
    ] = BoxFormat.XYXY
    image_id: Annotated[
        str | None,
        Field(
            max_length=200,
            description="of format=coco; if absent, the file name without its ending",
        ),
    ] = None


BATCH_OPTIONS = ("score", "iou", "max", "classes", "priority", "box_format")
OPTIONS = tuple(DetectParameters.model_fields)


def query_options(request: Request, accepted: tuple[str, ...]) -> dict[str, str]:
    """The options in the query.  Raises BadParameter for one that is unknown or given twice."""
    options: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in accepted:
            raise BadParameter(
                f"there is no query parameter {name[:80]!r}; accepted: {', '.join(accepted)}",
                extra={"parameter": name[:80], "accepted": list(accepted)},
            )
        if name in options:
            raise BadParameter(f"{name} is given more than once", extra={"parameter": name})
        options[name] = value
    return options


def parameters_of(query: Mapping[str, str], body: Mapping[str, str]) -> DetectParameters:
    """The options of the query and of the body together.  Raises BadParameter."""
    for name in query:
        if name in body:
            raise BadParameter(
                f"{name} is given in the query and in the body; give it once",
                extra={"parameter": name},
            )
    try:
        return DetectParameters.model_validate({**query, **body})
    except ValidationError as err:
        first = err.errors()[0]
        name = str(first["loc"][0])
        shown = str(first["input"])[:80]
        raise BadParameter(f"{name}={shown}: {first['msg']}", extra={"parameter": name}) from None


def options_for(parameters: DetectParameters, manifest: Manifest) -> DetectOptions:
    """What the detector is asked for; the model's own thresholds where nothing is given."""
    defaults = DetectOptions.from_thresholds(manifest.thresholds)
    return DetectOptions(
        score=defaults.score if parameters.score is None else parameters.score,
        iou=defaults.iou if parameters.iou is None else parameters.iou,
        max=defaults.max if parameters.max is None else parameters.max,
        classes=None if parameters.classes is None else labels_of(parameters.classes, manifest),
    )


def timeout_of(request: Request) -> float | None:
    """Seconds that the client gives the request, from X-Request-Timeout-Ms; None if it is absent.

    Raises BadParameter.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise BadParameter(
            f"{TIMEOUT_HEADER}: {text[:80]!r} is not accepted; accepted: a whole number of "
            "milliseconds, at least 1",
            extra={"parameter": TIMEOUT_HEADER},
        )
    return int(text) / 1000


def priority_of(request: Request, parameters: DetectParameters, default: Priority) -> Priority:
    """The option `priority`, else the header X-Priority, else `default`.  Raises BadParameter."""
    text = request.headers.get(PRIORITY_HEADER)
    if text is None:
        return parameters.priority or default
    names = [str(priority) for priority in Priority]
    if text not in names:
        detail = f"{PRIORITY_HEADER}: {text[:80]!r} is not accepted; accepted: {', '.join(names)}"
        raise BadParameter(detail, extra={"parameter": PRIORITY_HEADER, "accepted": names})
    if parameters.priority not in (None, text):
        detail = f"priority is {parameters.priority}, but the header {PRIORITY_HEADER} is {text}"
        raise BadParameter(detail, extra={"parameter": "priority"})
    return Priority(text)


def labels_of(classes: str, manifest: Manifest) -> frozenset[int]:
    """The labels of names or class_ids separated by commas.  Raises BadParameter."""
    known = manifest.class_names
    found = set()
    for name in (name.strip() for name in classes.split(",")):
        if name in known:
            found.add(known.index(name))
        elif re.fullmatch(r"[0-9]{1,6}", name) and int(name) < len(known):
            found.add(int(name))
        else:
            raise BadParameter(
                f"classes: {name[:80]!r} is not a class of {manifest.name}; accepted: "
                + ", ".join(known),
                extra={"parameter": "classes", "accepted": known},
            )
    return frozenset(found)

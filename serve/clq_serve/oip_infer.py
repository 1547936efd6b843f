"""One inference of the Open Inference Protocol: its tensors in, detections out as tensors.

Each image of a request goes through the service by itself, so that images of different requests
share batches; the request is answered when all have ended, or fails with the first that fails.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clq_serve.bundle import Manifest
from clq_serve.detector import DetectOptions
from clq_serve.errors import BadInferRequest, BadParameter, ServeError
from clq_serve.loading import LoadedModel
from clq_serve.oip_models import ProtocolModel
from clq_serve.oip_tensors import InferRequest, Parameters, Tensor, WantedOutput, bytes_array
from clq_serve.parameters import labels_of
from clq_serve.preprocess import InputRule, Pixels
from clq_serve.service import Outcome, Priority

OPTIONS = ("score_threshold", "iou_threshold", "max_detections", "classes")
ACCEPTED_PARAMETERS = (*OPTIONS, "timeout", "priority", "binary_data_output")
# A detector keeps no state between requests, so that a sequence makes no difference to it.
_WITHOUT_EFFECT = ("sequence_id", "sequence_start", "sequence_end")
MAX_DETECTIONS = 1000
IMAGES_AT_ONCE = 8  # of one request inside the service


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What the parameters of a request ask for; None = they do not say."""

    detect: DetectOptions
    priority: Priority | None
    timeout_s: float | None


def read_options(parameters: Parameters, model: LoadedModel) -> InferOptions:
    """The options in the parameters of a request.  Raises BadInferRequest."""
    for name in parameters:
        if name not in ACCEPTED_PARAMETERS + _WITHOUT_EFFECT and not name.startswith("triton_"):
            raise BadInferRequest(
                f"there is no parameter {name[:80]!r}; accepted: {', '.join(ACCEPTED_PARAMETERS)}"
            )
    defaults = DetectOptions.from_thresholds(model.bundle.manifest.thresholds)
    timeout_us = _number(parameters, "timeout", 0, 2**63)
    level = _whole(parameters, "priority", 0, 0, 2**32)  # 1 is the protocol's highest
    return InferOptions(
        DetectOptions(
            score=_number(parameters, "score_threshold", defaults.score, 1),
            iou=_number(parameters, "iou_threshold", defaults.iou, 1),
            max=_whole(parameters, "max_detections", defaults.max, 1, MAX_DETECTIONS),
            classes=_classes(parameters, model.bundle.manifest),
        ),
        (Priority.BULK if level > 1 else Priority.INTERACTIVE) if level else None,
        timeout_us / 1e6 or None,
    )


def image_files(request: InferRequest, max_images: int) -> list[bytes]:
    """The image files in `image`, BYTES [N] or [N, 1]; as JSON, each is a string of base64."""
    tensor = _only_input(request, "image", "BYTES")
    shape = tensor.array.shape
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
        raise BadInferRequest(f"image has shape {list(shape)}; accepted: [N] or [N, 1]")
    _check_count(shape[0], max_images)
    files: list[bytes] = tensor.array.ravel().tolist()
    if not tensor.from_json:
        return files
    try:
        return [base64.b64decode(text, validate=True) for text in files]
    except binascii.Error as err:
        raise BadInferRequest(
            f"image: a string is not base64 ({err}); send image files as binary data, or each as a "
            "string of base64"
        ) from None


def prepared_images(request: InferRequest, rule: InputRule, max_images: int) -> list[Pixels]:
    """The images in `images`, UINT8 [N, H, W, 3], which are resized and padded by `rule`."""
    pixels: Pixels = _only_input(request, "images", "UINT8").array
    shape = list(pixels.shape)
    if len(shape) != 4 or shape[3] != 3:
        raise BadInferRequest(f"images has shape {shape}; accepted: [N, H, W, 3]")
    _check_count(shape[0], max_images)
    multiple = rule.multiple
    shorter, longer = (-(-px // multiple) * multiple for px in (rule.shorter_px, rule.longer_px))
    sides = sorted(shape[1:3])
    fits = 0 < sides[0] <= shorter and sides[1] <= longer
    if not fits or any(side % multiple for side in sides):
        raise BadInferRequest(
            f"images has shape {shape}; accepted: [N, H, W, 3] with H and W multiples of "
            f"{multiple}, the shorter at most {shorter} and the longer at most {longer}"
        )
    return list(pixels)


async def all_outcomes(images: Sequence[Callable[[], Awaitable[Outcome]]]) -> list[Outcome]:
    """The outcome of each image, which is begun by calling it.

    Raises ServeError: that of the first image to fail; the others are given up.
    """
    turns = asyncio.Semaphore(IMAGES_AT_ONCE)
    numbers: Sequence[int | None] = [None] if len(images) == 1 else range(len(images))
    tasks = [
        asyncio.create_task(_in_turn(turns, number, image))
        for number, image in zip(numbers, images, strict=True)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def output_tensors(
    request: InferRequest, model: ProtocolModel, outcomes: Sequence[Outcome]
) -> list[tuple[Tensor, bool]]:
    """The outputs that the request wants, each with whether it is to be binary."""
    arrays = _arrays(outcomes)
    made: list[tuple[Tensor, bool]] = []
    for wanted in wanted_outputs(request, model):
        if wanted.classification:
            names = model.loaded.bundle.manifest.class_names
            lines = _classification(outcomes, names, wanted.classification)
            made.append((Tensor(wanted.name, "BYTES", lines), wanted.binary))
        else:
            datatype = model.outputs[wanted.name][0]
            made.append((Tensor(wanted.name, datatype, arrays[wanted.name]), wanted.binary))
    return made


def wanted_outputs(request: InferRequest, model: ProtocolModel) -> tuple[WantedOutput, ...]:
    """Which outputs the request wants: those it names, or all.  Raises BadInferRequest."""
    if request.outputs is None:
        return tuple(WantedOutput(name, request.binary, 0) for name in model.outputs)
    seen: set[str] = set()
    for wanted in request.outputs:
        if wanted.name not in model.outputs or wanted.name in seen:
            what = "is named twice" if wanted.name in seen else "is unknown"
            raise BadInferRequest(
                f"output {wanted.name[:80]!r} {what}; {model.name} has: {', '.join(model.outputs)}"
            )
        if wanted.classification and wanted.name != "scores":
            raise BadInferRequest(
                f"output {wanted.name!r}: classification is for the output 'scores' only"
            )
        seen.add(wanted.name)
    return request.outputs


def _only_input(request: InferRequest, name: str, datatype: str) -> Tensor:
    names = [tensor.name[:80] for tensor in request.inputs]
    if names != [name]:
        raise BadInferRequest(f"the inputs are {names[:5]}; accepted: exactly one, {name!r}")
    tensor = request.inputs[0]
    if tensor.datatype != datatype:
        raise BadInferRequest(f"{name} has datatype {tensor.datatype}; accepted: {datatype}")
    return tensor


def _check_count(count: int, max_images: int) -> None:
    if not 1 <= count <= max_images:
        raise BadInferRequest(f"the request has {count} images; accepted: 1 to {max_images}")


async def _in_turn(
    turns: asyncio.Semaphore, number: int | None, image: Callable[[], Awaitable[Outcome]]
) -> Outcome:
    """The outcome of the image; an error says which it was, None = it is the only one."""
    try:
        async with turns:
            return await image()
    except ServeError as err:
        if number is not None:
            err.detail = f"image {number}: {err.detail}"
        raise


def _arrays(outcomes: Sequence[Outcome]) -> dict[str, npt.NDArray[Any]]:
    """The outputs for N images: behind its own detections a row is 0, its labels are -1."""
    counts = [len(outcome.detections.scores) for outcome in outcomes]
    images, most = len(outcomes), max(counts)
    boxes = np.zeros((images, most, 4), np.float32)
    scores, quality = np.zeros((2, images, most), np.float32)
    labels = np.full((images, most), -1, np.int32)
    for row, (outcome, count) in enumerate(zip(outcomes, counts, strict=True)):
        boxes[row, :count] = outcome.detections.boxes
        scores[row, :count] = outcome.detections.scores
        quality[row, :count] = outcome.detections.qualities
        labels[row, :count] = outcome.detections.labels
    return {
        "num_dets": np.array(counts, np.int32)[:, None],  # (N, 1)
        "boxes": boxes,  # (N, D, 4)
        "scores": scores,  # (N, D)
        "labels": labels,
        "quality": quality,
        "image_size": np.array([[o.width, o.height] for o in outcomes], np.int32),  # (N, 2)
    }


def _classification(
    outcomes: Sequence[Outcome], names: Sequence[str], count: int
) -> npt.NDArray[np.object_]:
    """(N, at most `count`) "score:index:label" of the best detections; empty behind the last."""
    width = min(count, max(len(outcome.detections.scores) for outcome in outcomes))
    lines: list[bytes] = []
    for outcome in outcomes:
        found = outcome.detections
        best = list(zip(found.scores.tolist(), found.labels.tolist(), strict=True))[:width]
        row = [f"{score:f}:{i}:{names[label]}".encode() for i, (score, label) in enumerate(best)]
        lines += row + [b""] * (width - len(row))
    return bytes_array(lines, (len(outcomes), width))


def _number(parameters: Parameters, name: str, default: float, most: float) -> float:
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadInferRequest(
            f"parameter {name} is {str(value)[:40]!r}; accepted: a number from 0 to {most}"
        )
    return value


def _whole(parameters: Parameters, name: str, default: int, least: int, most: int) -> int:
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInferRequest(
            f"parameter {name} is {str(value)[:40]!r}; accepted: a whole number from {least} to "
            f"{most}"
        )
    return value


def _classes(parameters: Parameters, manifest: Manifest) -> frozenset[int] | None:
    value = parameters.get("classes")
    if value is None:
        return None
    if isinstance(value, bool | float):
        raise BadInferRequest(
            "parameter classes is not accepted; accepted: names, separated by commas"
        )
    try:
        return labels_of(str(value), manifest)
    except BadParameter as err:
        raise BadInferRequest(f"parameter {err.detail}") from None

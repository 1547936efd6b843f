"""One image of a request to its encoded answer: from the cache, or by the model."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial

from fastapi import Request

from clq_serve.annotate import annotate
from clq_serve.bodies import departure
from clq_serve.cache import AnswerCache, etag_of, names_etag
from clq_serve.errors import DeadlineExceeded
from clq_serve.formats import (
    BoxFormat,
    Encoded,
    Format,
    Rendering,
    encode_coco,
    encode_json,
    encode_yolo,
    image_id_of,
    negotiate,
)
from clq_serve.loading import LoadedModel
from clq_serve.parameters import DetectParameters, options_for, priority_of
from clq_serve.service import DetectCall, DetectService, Outcome, Priority, Visit


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an answer is to be given; image_id is for the format coco, None in the others."""

    rendering: Rendering
    boxes: BoxFormat
    image_id: int | str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what its headers say; encoded is None where the client has it already."""

    encoded: Encoded | None
    etag: str
    cache_status: str
    server_timing: str


def wanted_by(request: Request, parameters: DetectParameters, file_name: str) -> Wanted:
    """What `format`, `box_format`, `image_id` and Accept ask for.

    Raises NotAcceptable or BadParameter.
    """
    rendering = negotiate(request.headers.get("accept"), parameters.format)
    coco = rendering.format is Format.COCO
    image_id = image_id_of(parameters.image_id, file_name) if coco else None
    return Wanted(rendering, parameters.box_format, image_id)


def call_of(
    request: Request,
    visit: Visit,
    model: LoadedModel,
    parameters: DetectParameters,
    usual: Priority,
) -> DetectCall:
    """What the service is asked to do.  Raises BadParameter."""
    return DetectCall(
        model,
        options_for(parameters, model.bundle.manifest),
        priority_of(request, parameters, usual),
        visit.deadline_s,
        visit.timeout_s,
        departure(request),
    )


async def answer_image(
    service: DetectService,
    cache: AnswerCache,
    data: bytes,
    call: DetectCall,
    wanted: Wanted,
    if_none_match: str | None = None,
) -> Answered:
    """The answer about the image file `data`.

    if_none_match  the header, if there is one: an answer that it names is not made again

    Raises ServeError.
    """
    if not cache.on and if_none_match is None:
        return await _made(service, data, call, wanted)
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
    etag = _etag(sha256, call, wanted)
    if names_etag(if_none_match, etag):
        return Answered(None, etag, "", "")
    if not cache.on:
        return await _made(service, data, call, wanted)
    turn = cache.turn(etag)
    await _wait_for(turn, call)
    try:
        kept = cache.get(etag)
        service.metrics.answer_cache(hit=kept is not None)
        if kept is not None:
            return Answered(kept, etag, "clq-serve; hit", "cache;desc=hit")
        made = await _made(service, data, call, wanted)
        assert made.encoded is not None
        stored = "; stored" if cache.put(etag, made.encoded) else ""
        return replace(made, cache_status=f"clq-serve; fwd=miss{stored}")
    finally:
        turn.release()


async def _wait_for(turn: asyncio.Lock, call: DetectCall) -> None:
    """Until no other request makes the same answer."""
    try:
        async with asyncio.timeout(call.deadline_s - time.monotonic()):
            await turn.acquire()
    except TimeoutError:
        raise DeadlineExceeded(
            f"no result within {call.timeout_s:g} s; the time ran out in stage 'queue'",
            extra={"stage": "queue", "limit": call.timeout_s},
        ) from None


async def _made(service: DetectService, data: bytes, call: DetectCall, wanted: Wanted) -> Answered:
    """The answer by the model."""
    outcome = await service.detect(data, call)
    start = time.perf_counter()
    encoded = await _encode(service, data, call, wanted, outcome)
    encode_s = time.perf_counter() - start
    service.metrics.stage("encode", encode_s)
    times = outcome.timing.model_dump(exclude={"batch_size"}) | {"encode": round(1e3 * encode_s, 3)}
    server_timing = ", ".join(f"{stage};dur={ms}" for stage, ms in times.items())
    return Answered(encoded, _etag(outcome.sha256, call, wanted), "", server_timing)


def _etag(sha256: str, call: DetectCall, wanted: Wanted) -> str:
    model = call.model.bundle.fingerprint
    return etag_of(sha256, model, call.options, wanted.rendering, wanted.boxes, wanted.image_id)


async def _encode(
    service: DetectService, data: bytes, call: DetectCall, wanted: Wanted, outcome: Outcome
) -> Encoded:
    manifest = call.model.bundle.manifest
    match wanted.rendering.format:
        case Format.JSON:
            return encode_json(call.model, outcome, wanted.boxes)
        case Format.COCO:
            assert wanted.image_id is not None
            return encode_coco(manifest, outcome, wanted.image_id)
        case Format.YOLO:
            return encode_yolo(outcome)
        case Format.IMAGE:
            drawn = partial(
                annotate,
                found=outcome.detections,
                names=manifest.class_names,
                media_type=wanted.rendering.media_type,
            )
            picture = await service.render(data, outcome, call, drawn)
            count = len(outcome.detections.scores)
            return Encoded(wanted.rendering.media_type, picture, False, count)

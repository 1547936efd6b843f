"""Decoding in processes of their own: same pixels, and a crash costs one image."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from clq_serve.decode_process import DecodeProcess
from clq_serve.decoding import DecodedUpload, Decoders, decode_upload, most_pixels
from clq_serve.errors import (
    ClientLeft,
    CorruptImage,
    DecoderCrashed,
    ImageError,
    ImageTooLarge,
    TruncatedImage,
    UnsupportedImage,
)
from clq_serve.preprocess import ImageLimits, InputRule

PATIENCE_S = 60
RULE = InputRule(96, 192, False, 64, (1, 2, 3), (255, 255, 255))
MOST = 3 * most_pixels(RULE)


def png(width: int = 120, height: int = 70, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    process = DecodeProcess(ImageLimits(max_pixels=10_000_000), 2**28)
    yield process
    process.close()


def test_a_process_gives_the_pixels_that_a_thread_gives(process: DecodeProcess) -> None:
    for seed, (width, height) in enumerate([(120, 70), (1, 1), (500, 90), (64, 64)]):
        data = png(width, height, seed)
        rule = replace(RULE, largest_scale=0.55 if seed else None)
        here = decode_upload(data, ImageLimits(), rule)
        there = process.decode(data, rule, MOST, PATIENCE_S)
        assert (there.pixels == here.prepared.pixels).all()
        assert there.geometry == here.prepared.geometry
        assert (there.format, there.orientation_applied) == ("PNG", False)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"what", UnsupportedImage),
        (png()[:-30], TruncatedImage),
        (png()[:40] + bytes(400) + png()[440:], CorruptImage),
        (png(4000, 4000), ImageTooLarge),
    ],
)
def test_a_process_refuses_what_a_thread_refuses(
    process: DecodeProcess, data: bytes, error: type[ImageError]
) -> None:
    with pytest.raises(error) as here:
        decode_upload(data, ImageLimits(max_pixels=10_000_000), RULE)
    with pytest.raises(error) as there:
        process.decode(data, RULE, MOST, PATIENCE_S)
    assert there.value.detail == here.value.detail
    assert there.value.extra == here.value.extra


def test_an_image_that_needs_too_much_memory_is_refused_and_the_process_lives_on() -> None:
    process = DecodeProcess(ImageLimits(), 2**26)
    pid = process.pid
    file = io.BytesIO()
    Image.new("L", (7000, 7000)).save(file, "PNG")
    with pytest.raises(ImageTooLarge, match="decode_memory_bytes"):
        process.decode(file.getvalue(), RULE, MOST, PATIENCE_S)
    assert process.decode(png(), RULE, MOST, PATIENCE_S).format == "PNG"
    assert process.pid == pid
    process.close()


def test_a_process_that_is_killed_while_it_has_nothing_to_do_costs_nothing(
    process: DecodeProcess,
) -> None:
    process.decode(png(), RULE, MOST, PATIENCE_S)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.decode(png(), RULE, MOST, PATIENCE_S).format == "PNG"


def test_a_process_that_does_not_answer_in_time_is_replaced(process: DecodeProcess) -> None:
    process.decode(png(), RULE, MOST, PATIENCE_S)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        process.decode(png(), RULE, MOST, 0.05)
    assert process.decode(png(), RULE, MOST, PATIENCE_S).format == "PNG"


def with_decoders(scenario: Callable[[Decoders], Awaitable[None]]) -> None:
    async def run() -> None:
        decoders = Decoders(1, ImageLimits(), processes=2)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scenario(decoders)
        finally:
            decoders.close()

    asyncio.run(run())


async def decode(decoders: Decoders, seed: int) -> DecodedUpload:
    deadline_s = time.monotonic() + PATIENCE_S
    return await decoders.decode(png(seed=seed), RULE, lambda: False, deadline_s)


def test_a_crash_costs_one_image_and_the_pool_heals() -> None:
    async def scenario(decoders: Decoders) -> None:
        await asyncio.gather(decode(decoders, 0), decode(decoders, 1))
        victim, _ = decoders.pids()
        os.kill(victim, signal.SIGSTOP)  # so that it has an image in hand when it dies
        jobs = [asyncio.create_task(decode(decoders, seed)) for seed in range(12)]
        while sum(job.done() for job in jobs) < 11:
            await asyncio.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        results = await asyncio.gather(*jobs, return_exceptions=True)
        crashed = [result for result in results if isinstance(result, BaseException)]
        assert [type(error) for error in crashed] == [DecoderCrashed]
        assert "SIGKILL" in str(crashed[0])
        for seed, result in enumerate(results):
            if isinstance(result, DecodedUpload):
                expected = decode_upload(png(seed=seed), ImageLimits(), RULE).prepared.pixels
                assert (result.prepared.pixels == expected).all()
        await asyncio.gather(*(decode(decoders, seed) for seed in range(4)))
        assert victim not in decoders.pids()

    with_decoders(scenario)


def test_an_image_that_nobody_waits_for_any_more_is_not_decoded() -> None:
    async def scenario(decoders: Decoders) -> None:
        later_s = time.monotonic() + PATIENCE_S
        with pytest.raises(ClientLeft):
            await decoders.decode(b"never looked at", RULE, lambda: True, later_s)
        with pytest.raises(TimeoutError):
            await decoders.decode(b"never looked at", RULE, lambda: False, 0.0)

    with_decoders(scenario)


def test_the_process_imports_neither_web_framework_nor_engine() -> None:
    code = "import clq_serve.decode_worker, sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"numpy", "PIL", "clq_serve"} <= imported
    assert not imported & {"fastapi", "starlette", "uvicorn", "pydantic", "onnxruntime"}


def test_the_service_answers_the_same_with_decoding_processes(start_server) -> None:
    answers = []
    for workers in (0, 1):
        server = start_server(decode_workers=workers)
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{server}/v1/detect", content=png(), headers=headers, timeout=60)
        assert answer.status_code == 200
        refused = httpx.post(f"{server}/v1/detect", content=b"no", headers=headers, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_image")
        answers.append(answer.json()["detections"])
    assert answers[0] == answers[1]

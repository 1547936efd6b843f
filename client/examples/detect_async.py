"""The same with several images on the way at once: python detect_async.py IMAGE..."""

import asyncio
import sys

from clq_client import AsyncClient, ClqError, DetectResult

AT_ONCE = 4


async def main(paths: list[str]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def detect(client: AsyncClient, path: str) -> DetectResult | ClqError:
        async with places:
            try:
                return await client.detect(path, score=0.3)
            except ClqError as error:  # one image that fails does not stop the others
                return error

    async with AsyncClient() as client:
        results = await asyncio.gather(*(detect(client, path) for path in paths))
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, ClqError):
            print(f"{path}: {result}", file=sys.stderr)
            continue
        for found in result.detections:
            print(path, found.label, round(found.score, 3), *found.box)


asyncio.run(main(sys.argv[1:]))

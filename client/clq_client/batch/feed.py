"""Jobs out of a thread that walks folders, reads stdin and decodes videos, a few ahead."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from clq_client.run import Job

_PLACES = 64  # how far the thread may be ahead: 64 names, or 8 frames with their pixels
_PLACES_OF_FRAME = 8


class Feed:
    """The jobs whose key is new, each as soon as there is one: `async for job in feed`.

    The thread is a daemon: one that waits for stdin must not hold up the end of the process.
    """

    def __init__(self, jobs: Iterator[Job], is_new: Callable[[str], bool]) -> None:
        self._jobs = jobs
        self._is_new = is_new
        self._ready: deque[Job] = deque()
        self._places = threading.Semaphore(_PLACES)
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        threading.Thread(target=self._walk, name="clq-client walk", daemon=True).start()

    def __aiter__(self) -> AsyncIterator[Job]:
        return self

    async def __anext__(self) -> Job:
        while not self._ready:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            if not self._ready and not self._ended:
                await self._news.wait()
        job = self._ready.popleft()
        self._places.release(_places_of(job))
        return job

    def stop(self) -> None:
        """Lets the thread end at its next job."""
        self._stopped = True
        self._places.release(_PLACES_OF_FRAME)

    def _walk(self) -> None:
        try:
            for job in self._jobs:
                if self._is_new(job.key):
                    for _ in range(_places_of(job)):
                        self._places.acquire()
                    self._ready.append(job)
                    self._tell()
                if self._stopped:
                    return
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop has ended: nobody wants jobs any more
            self._stopped = True


def _places_of(job: Job) -> int:
    return _PLACES_OF_FRAME if isinstance(job.source, bytes) else 1

"""An event loop in a thread of its own, with the connections that belong to it."""

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from clq_client.lines import Lines
from clq_client.settings import ClientSettings

T = TypeVar("T")
_CLOSE_S = 5.0


class LoopThread:
    """Runs coroutines for callers in other threads.  One that is forgotten ends by itself."""

    def __init__(self, settings: ClientSettings) -> None:
        self.lines = Lines(settings)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="clq-client", daemon=True)
        thread.start()
        self._loop = loop
        # Not self.close: what the finalizer holds would live as long as the process.
        self._finalizer = weakref.finalize(self, _close, loop, thread, self.lines, self._pid)

    @property
    def usable(self) -> bool:
        """False after a fork: the thread stayed in the parent."""
        return self._pid == os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises.  Ctrl-C and the like cancel it."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise RuntimeError("the client was closed during the call") from error
        finally:
            future.cancel()  # nothing, where it is done

    def close(self) -> None:
        """Ends the calls that are on their way, the connections and the thread."""
        with self._lock:  # a call that came later would wait for a loop that has stopped
            self._closed = True
        self._finalizer()


def _close(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    lines: Lines,
    pid: int,
) -> None:
    if pid != os.getpid():
        return
    if threading.current_thread() is thread:  # the garbage collector ran here: nobody may wait
        loop.call_soon(loop.stop)
        return
    asyncio.run_coroutine_threadsafe(_end(lines), loop).result(_CLOSE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_CLOSE_S)
    if not thread.is_alive():
        loop.close()


async def _end(lines: Lines) -> None:
    calls = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await lines.close()

"""The two ways to send: an open loop, whose users do not wait for each other, and a closed one."""

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clq_client.bench.target import BadReply, Connection, Reply, Stale, Target

LAG_PERIOD_S = 0.01


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.  Times are seconds after the start of the run.

    due_s          when it arrived: scheduled in an open loop, sent in a closed one
    sent_s         when it was sent; later than due_s where all connections were busy
    ended_s        when its whole answer was there, or it had failed
    status         of the answer, 0 where there was none
    failure        "" or why there was no answer
    server_timing  the header, not parsed yet
    resent         the server had closed the kept connection that it was sent over first
    """

    due_s: float
    sent_s: float
    ended_s: float
    status: int
    failure: str
    server_timing: bytes
    resent: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where: requests are used by turns.

    connections  in a closed loop how many users; in an open loop the most that are opened
    timeout_s    of one request, from its arrival
    """

    target: Target
    requests: Sequence[bytes]
    connections: int
    timeout_s: float


async def open_loop(load: Load, arrivals: Iterable[float]) -> list[Sample]:
    """The samples of requests sent at `arrivals`, whatever became of those before them.

    arrivals  ascending, seconds after the start
    returns   one sample for each arrival, in the order in which they ended; when all have ended

    Where all connections are busy a request waits for one, and its latency counts that wait.
    """
    loop = asyncio.get_running_loop()
    pool = _Pool(load)
    samples: list[Sample] = []
    bodies = itertools.cycle(load.requests)
    start_s = loop.time()

    async def send(due_s: float, request: bytes) -> None:
        async with pool.free:
            samples.append(await pool.send(request, due_s, start_s))

    try:
        async with asyncio.TaskGroup() as group:
            for due_s in arrivals:
                wait_s = start_s + due_s - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(send(due_s, next(bodies)))
    finally:
        pool.close()
    return samples


async def closed_loop(load: Load, duration_s: float) -> list[Sample]:
    """The samples of `load.connections` users who each send again as soon as they are answered.

    No request begins after duration_s; those on the way are waited for.
    """
    loop = asyncio.get_running_loop()
    pool = _Pool(load)
    samples: list[Sample] = []
    bodies = itertools.cycle(load.requests)
    start_s = loop.time()

    async def user() -> None:
        while (due_s := loop.time() - start_s) < duration_s:
            sample = await pool.send(next(bodies), due_s, start_s)
            samples.append(sample)
            if sample.status == 0:
                await asyncio.sleep(0.05)  # a server that is not there is not asked in a hot loop

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(load.connections):
                group.create_task(user())
    finally:
        pool.close()
    return samples


class LoopLag:
    """How late the event loop of this process ran what was due; seconds, one value each 10 ms.

    Its size is the error of every latency that was measured meanwhile.
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []

    async def watch(self) -> None:
        """Measures until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self.lags_s.append(max(loop.time() - due_s, 0.0))


class _Pool:
    """Connections that are kept; the one used last is used next, so that surplus ones age."""

    def __init__(self, load: Load) -> None:
        self.free = asyncio.Semaphore(load.connections)
        self._load = load
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()

    async def send(self, request: bytes, due_s: float, start_s: float) -> Sample:
        """One request with everything that can happen to it, as a sample."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time() - start_s
        reply, failure, resent = Reply(0, b""), "", False
        try:
            async with asyncio.timeout_at(start_s + due_s + self._load.timeout_s):
                try:
                    reply = await self._over(await self._connection(), request)
                except Stale:
                    # The server may close an idle connection at the moment it is used again.
                    resent = True
                    reply = await self._over(await Connection.open(self._load.target), request)
        except TimeoutError:
            failure = "timeout"
        except (OSError, asyncio.IncompleteReadError) as error:
            failure = _word_for(error)
        except BadReply as error:
            failure = f"no HTTP answer: {error}"
        ended_s = loop.time() - start_s
        return Sample(due_s, sent_s, ended_s, reply.status, failure, reply.server_timing, resent)

    async def _over(self, connection: Connection, request: bytes) -> Reply:
        self._busy.add(connection)
        try:
            reply = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return await Connection.open(self._load.target)


def _word_for(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | asyncio.IncompleteReadError):
        return "connection cut"
    return f"cannot connect: {error}"

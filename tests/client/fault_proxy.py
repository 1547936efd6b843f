"""A proxy between a client and a service that breaks a part of what goes through it, by a seed.

python fault_proxy.py UPSTREAM_PORT SEED SHARE   prints its port, then runs until it is killed

Every request has a fault of its own with probability SHARE:

delay       the request waits up to 50 ms
refuse      the connection is closed before the request is read
cut         it is closed in the middle of the request
lost        the service does the work and its answer is thrown away
truncated   the answer ends in its middle
half        the answer ends in its middle and only the sending half is closed
busy        503 with Retry-After, or 429
gateway     a 502 page, as a proxy of another make would send it
"""

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter

FAULTS = ("delay", "refuse", "cut", "lost", "truncated", "half", "busy", "gateway")


class FaultProxy:
    """Listens on 127.0.0.1; `seen` counts the requests by what was done to them."""

    def __init__(self, upstream_port: int, seed: int, share: float) -> None:
        self._upstream_port = upstream_port
        self._random = random.Random(seed)
        self._share = share
        self.seen: Counter[str] = Counter()

    async def serve(self) -> None:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The two ends go away as they like: that is what this program is for.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            try:
                while await self._request(reader, writer, *upstream):
                    pass
            finally:
                upstream[1].close()
        writer.close()

    async def _request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection goes on."""
        fault = self._random.choice(FAULTS) if self._random.random() < self._share else "none"
        head = await reader.readuntil(b"\r\n\r\n")
        length = content_length(head)
        self.seen[fault] += 1
        if fault == "refuse":
            return False
        if fault == "cut":
            await reader.readexactly(length // 2)
            return False
        body = await reader.readexactly(length)
        if fault == "delay":
            await asyncio.sleep(self._random.uniform(0.0, 0.05))
        if fault in ("busy", "gateway"):
            writer.write(self._own_answer(fault))
            await writer.drain()
            return True
        up_writer.write(head + body)
        answer_head = await up_reader.readuntil(b"\r\n\r\n")
        answer = answer_head + await up_reader.readexactly(content_length(answer_head))
        if fault == "lost":
            return False
        if fault in ("truncated", "half"):
            writer.write(answer[: self._random.randrange(1, len(answer))])
            await writer.drain()
            if fault == "half":
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 5)  # until the client has understood
            return False
        writer.write(answer)
        await writer.drain()
        return True

    def _own_answer(self, fault: str) -> bytes:
        if fault == "gateway":
            head, body = "502 Bad Gateway\r\nContent-Type: text/html", b"<html>Bad gateway</html>"
        elif self._random.random() < 0.5:
            head, body = "429 Too Many Requests\r\nContent-Type: text/plain", b"slower"
        else:
            wait_s = 1 if self._random.random() < 0.02 else 0
            head = f"503 Service Unavailable\r\nRetry-After: {wait_s}"
            head += "\r\nContent-Type: application/problem+json"
            body = json.dumps({"code": "overloaded", "detail": "too many", "status": 503}).encode()
        return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


if __name__ == "__main__":
    asyncio.run(FaultProxy(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).serve())

"""A server that reads requests and does nothing: what the load generator is measured against.

`python -m clq_client.bench.trivial_server` prints its port and answers until its stdin is closed,
so that it does not outlive who started it, however that ends.
"""

import asyncio
import re
import signal
import sys

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Server-Timing: total;dur=0.0\r\nContent-Length: 2\r\n\r\n{}"
)


class _Trivial(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._head = b""
        self._missing = 0  # bytes of the body that are still to come

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)  # the client sends nothing more before it is answered
        else:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            found = _LENGTH.search(head)
            self._missing = (int(found[1]) if found else 0) - len(body)
            self._head = b""
        if self._missing == 0:
            self._transport.write(_ANSWER)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Trivial, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    asyncio.run(_serve())

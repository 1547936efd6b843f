"""A server that answers every request at once with the same result: python instant_server.py.

It prints its port, then runs until it is killed.  It stands in for the service where thousands of
requests are sent only to see what the client does with them.
"""

import asyncio
import json

DIGEST = "sha256:" + "ab" * 32
MODEL = {"name": "fake", "version": 1, "digest": DIGEST, "classes": ["thing"]}
DETECT = {
    "id": "x",
    "model": {"name": "fake", "version": 1, "digest": DIGEST},
    "image": {
        "width": 8,
        "height": 8,
        "orientation_applied": False,
        "format": "PNG",
        "sha256": "cd" * 32,
    },
    "detections": [],
    "timing_ms": {
        "decode": 0.0,
        "queue": 0.0,
        "infer": 0.0,
        "post": 0.0,
        "total": 0.0,
        "batch_size": 1,
    },
}
ANSWERS = {
    b"/v1/models": {"models": [MODEL]},
    b"/v1/labels": {"labels": [{"class_id": 0, "label": "thing", "category_id": 1}]},
    b"/v1/detect": DETECT,
}


class Instant(asyncio.Protocol):
    """Answers as soon as a request is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(rest) < length:
                return
            self._data = rest[length:]
            body = json.dumps(ANSWERS[head.split(b" ", 2)[1]]).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

"""A service whose speed is decided by its settings; run as a process by the tests of `tune`.

CLQ_SERVE_THREADS images are worked on at a time, each takes CLQ_SERVE_BATCH_DELAY_MS; a setting
max_batch of 0 is refused.  Each process writes its id into the file STUB_PIDS, and has a child.
"""

import asyncio
import os
import signal
import subprocess
import sys


async def main():
    threads = asyncio.Semaphore(int(os.environ.get("CLQ_SERVE_THREADS", "1")))
    work_s = float(os.environ.get("CLQ_SERVE_BATCH_DELAY_MS", "40")) / 1000

    async def connected(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                if head.startswith(b"post"):
                    async with threads:
                        await asyncio.sleep(work_s)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    await asyncio.start_server(connected, "127.0.0.1", int(os.environ["CLQ_SERVE_PORT"]))
    await asyncio.Event().wait()


if os.environ.get("CLQ_SERVE_MAX_BATCH") == "0":
    sys.exit("stub: CLQ_SERVE_MAX_BATCH: '0' is not accepted")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(os.environ["STUB_PIDS"], "a") as pids:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pids.write(f"{os.getpid()}\n{child.pid}\n")
asyncio.run(main())

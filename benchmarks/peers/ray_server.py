"""Ray Serve: a deployment that takes Starlette requests, with @serve.batch or several replicas."""

import signal

import ray
from ray import serve
from same import BATCH, BATCH_WAIT_S, PORT, WORKERS, Model
from starlette.requests import Request


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Detect:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S if BATCH > 1 else 0)
    async def detect(self, files: list[bytes]) -> list[dict]:
        return [{"detections": one} for one in self.model.detect(files)]

    async def __call__(self, request: Request) -> dict:
        return await self.detect(await request.body())


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Detect.bind(), route_prefix="/detect")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()

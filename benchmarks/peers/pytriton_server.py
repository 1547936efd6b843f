"""PyTriton: Triton's HTTP front end and dynamic batcher before a Python function."""

import json

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from same import BATCH, BATCH_WAIT_S, PORT, WORKERS, Model


def bound(model: Model):
    @batch
    def detect(image: np.ndarray) -> dict[str, np.ndarray]:
        found = model.detect(image[:, 0].tolist())  # (N, 1) of bytes
        texts = [json.dumps({"detections": one}).encode() for one in found]
        return {"answer": np.array(texts, dtype=np.object_)[:, None]}

    return detect


if __name__ == "__main__":
    ports = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2
    )
    with Triton(config=ports) as triton:
        triton.bind(
            model_name="detect",
            infer_func=[bound(Model()) for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=max(BATCH, 1),
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(1e6 * BATCH_WAIT_S)),
            ),
        )
        triton.serve()

"""LitServe: decode_request, predict and encode_response, with its batching or its workers."""

import litserve as ls
from fastapi import UploadFile
from same import BATCH, BATCH_WAIT_S, PORT, WORKERS, Model


class Detect(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: UploadFile) -> bytes:
        return request.file.read()

    def predict(self, files):  # bytes, or a list of them when batches are on
        return self.model.detect(files) if BATCH > 1 else self.model.detect([files])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"detections": output}


if __name__ == "__main__":
    api = Detect(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_S, api_path="/detect")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")

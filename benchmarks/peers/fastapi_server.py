"""A plain FastAPI handler: `def`, so that FastAPI runs it in its pool of threads."""

from fastapi import FastAPI, UploadFile
from same import Model

app = FastAPI()
model = Model()


@app.post("/detect")
def detect(image: UploadFile) -> dict:
    return {"detections": model.detect([image.file.read()])[0]}

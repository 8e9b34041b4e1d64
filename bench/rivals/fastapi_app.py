"""FastAPI + OpenVINO: `uvicorn fastapi_app:app`."""

from common import OpenVINO
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

model = OpenVINO()
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[float]]:
    """A picture's probabilities."""
    body = await request.body()
    return {"probabilities": await run_in_threadpool(model.probabilities, body)}

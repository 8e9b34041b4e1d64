"""LitServe + OpenVINO: `python litserve_app.py`."""

import base64

import litserve
from common import PORT, THREADS, OpenVINO
from fastapi import Request


class Classifier(litserve.LitAPI):
    """Takes the picture in JSON, in base64; a worker a thread, since each takes one request at a time."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = OpenVINO(threads=1)

    async def decode_request(self, request: Request) -> bytes:
        """The picture's bytes; what arrives here is the parsed body."""
        return base64.b64decode(request["image"])

    async def predict(self, data: bytes) -> list[float]:
        """A picture's probabilities."""
        return self.model.probabilities(data)

    async def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """As JSON."""
        return {"probabilities": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(enable_async=True), accelerator="cpu", workers_per_device=THREADS, timeout=60
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="error")

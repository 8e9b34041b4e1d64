"""Ray Serve + Keras predict as most people write it: `serve run ray_keras_app:app`."""

from common import Keras
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=64)
class Classifier:
    """Takes the picture as its body."""

    def __init__(self) -> None:
        self.model = Keras()

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """A picture's probabilities."""
        return {"probabilities": self.model.probabilities(await request.body())}


app = Classifier.bind()

"""BentoML + OpenVINO: `bentoml serve bentoml_app:Classifier`."""

from pathlib import Path

import bentoml
from common import THREADS, OpenVINO


@bentoml.service(workers=1, threads=THREADS, traffic={"timeout": 60})
class Classifier:
    """Takes the picture as a file of a form."""

    def __init__(self) -> None:
        self.model = OpenVINO()

    @bentoml.api(route="/predict")
    def predict(self, image: Path) -> dict[str, list[float]]:
        """A picture's probabilities."""
        return {"probabilities": self.model.probabilities(image.read_bytes())}

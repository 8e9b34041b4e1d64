"""MLServer + OpenVINO: `mlserver start FOLDER`, with a model-settings.json that names this class."""

from common import OpenVINO
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Classifier(MLModel):
    """Takes the picture as a BYTES tensor in base64."""

    async def load(self) -> bool:
        """Load the model."""
        self.model = OpenVINO()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A picture's probabilities."""
        import asyncio
        import base64

        data = payload.inputs[0].data[0]
        picture = base64.b64decode(data)
        found = await asyncio.get_running_loop().run_in_executor(None, self.model.probabilities, picture)
        output = ResponseOutput(name="probabilities", shape=[1, len(found)], datatype="FP32", data=found)
        return InferenceResponse(model_name=self.name, outputs=[output])

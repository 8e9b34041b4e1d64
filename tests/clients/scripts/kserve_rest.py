"""kserve's InferenceRESTClient, as its users write it: protocol v2 with bytes and pixels, and v1. Prints what came."""

import asyncio
import base64
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

address, model, picture, pixels = sys.argv[1:]
image = Path(picture).read_bytes()
raw = np.load(pixels)


async def main() -> None:
    found = {}
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", timeout=30))
    found["live"] = await client.is_server_live(address)
    found["ready"] = await client.is_server_ready(address)
    found["model_ready"] = await client.is_model_ready(address, model)
    answers = []
    for binary in (True, False):
        tensor = InferInput("pixels", list(raw.shape), "UINT8")
        tensor.set_data_from_numpy(raw, binary_data=binary)
        request = InferRequest(model_name=model, infer_inputs=[tensor])
        response = await client.infer(address, request, model_name=model)
        outputs = {output.name: output.as_numpy().astype(str).tolist() for output in response.outputs}
        answers.append(outputs)
    tensor = InferInput("image", [1], "BYTES", data=[base64.b64encode(image).decode()])
    request = InferRequest(model_name=model, infer_inputs=[tensor])
    response = await client.infer(address, request, model_name=model)
    found["bytes"] = {output.name: np.ravel(output.data).tolist() for output in response.outputs}
    found["answers"] = answers
    first = InferenceRESTClient(config=RESTConfig(protocol="v1", timeout=30))
    body = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    found["v1"] = await first.infer(address, body, model_name=model)
    try:
        await client.infer(address, request, model_name="other")
    except Exception as error:
        found["error"] = str(error)
    print(json.dumps(found))


asyncio.run(main())

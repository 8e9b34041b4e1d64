"""tritonclient[http], as its users write it: picture bytes and pixels, binary and JSON. Prints what came back."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

address, model, picture, pixels = sys.argv[1:]
image = np.array([Path(picture).read_bytes()], dtype=np.object_)
raw = np.load(pixels)
client = triton.InferenceServerClient(address.removeprefix("http://"))
found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready(model),
    "version_ready": client.is_model_ready(model, "3"),
    "other_ready": client.is_model_ready("other"),
    "server": client.get_server_metadata(),
    "model": client.get_model_metadata(model),
    "answers": [],
}
for binary_in in (True, False):
    for binary_out in (True, False):
        tensor = triton.InferInput("pixels", list(raw.shape), "UINT8")
        tensor.set_data_from_numpy(raw, binary_data=binary_in)
        names = ("probabilities", "logits", "label")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
        result = client.infer(model, [tensor], outputs=outputs, request_id="7")
        found["answers"].append({name: result.as_numpy(name).astype(str).tolist() for name in names})
tensor = triton.InferInput("image", [1], "BYTES")
tensor.set_data_from_numpy(image, binary_data=True)
result = client.infer(model, [tensor], model_version="3")  # All outputs, as the server sends them.
found["bytes"] = {name: result.as_numpy(name).astype(str).tolist() for name in ("probabilities", "logits", "label")}
found["id"] = client.infer(model, [tensor], request_id="x").get_response().get("id")
try:
    client.infer("other", [tensor])
except triton.InferenceServerException as error:
    found["error"] = error.message()
compressed = None
try:
    client.infer(model, [tensor], request_compression_algorithm="gzip")
except triton.InferenceServerException as error:
    compressed = error.message()
found["compressed"] = compressed
print(json.dumps(found))

"""Flask + OpenVINO: `gunicorn flask_app:app`."""

from common import OpenVINO
from flask import Flask, jsonify, request

model = OpenVINO()
app = Flask(__name__)


@app.post("/predict")
def predict():
    """A picture's probabilities."""
    return jsonify(probabilities=model.probabilities(request.get_data()))

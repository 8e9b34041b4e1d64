"""Flask + Keras predict: `gunicorn flask_keras_app:app`, the course's way."""

from common import Keras
from flask import Flask, jsonify, request

model = Keras()
app = Flask(__name__)


@app.post("/predict")
def predict():
    """A picture's probabilities."""
    return jsonify(probabilities=model.probabilities(request.get_data()))

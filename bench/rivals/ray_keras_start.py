"""Starts `ray_keras_app` on RIVAL_PORT with Ray Serve's defaults, until it is interrupted."""

import signal

import ray
from common import PORT
from ray import serve
from ray_keras_app import app

if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": PORT})
    serve.run(app)
    signal.pause()

"""Serves a rayml bundle over HTTP with Ray Serve; importing it loads neither Ray nor TensorFlow."""

"""What runs a graph: one small interface, four engines behind it.

openvino     the fastest on a processor, `auto`'s first choice
onnxruntime  everywhere else, `auto`'s second choice
tensorflow   the reference that the others are measured against: wraps a Keras model, never reads a graph
jax          the same where Keras runs on JAX
"""

from rayml.engines.base import Engine
from rayml.engines.load import ENGINES, PRECISIONS, load_engine

__all__ = ["ENGINES", "PRECISIONS", "Engine", "load_engine"]

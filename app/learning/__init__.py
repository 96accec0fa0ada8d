"""From a table to a trained network. Settles, before any library is imported, what each would do by itself."""

import os

# ONNX Runtime would report to its maker from every process; an operator who wants that sets 0
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Keras would read settings from the home directory and write them there; under /dev/null it can do neither
os.environ.setdefault("KERAS_HOME", os.devnull)
# TensorFlow would log how it was built; it and JAX would take all memory of a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

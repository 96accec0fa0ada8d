"""Networks: the layers as plain data, and what computes them: ONNX Runtime on the CPU, Keras on a GPU and in training.

Imports `spec` and nothing else of `learning`. Start at `architecture`. The serving process imports no `keras_…` module
unless it computes on a GPU.
"""

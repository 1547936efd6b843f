"""The words that options accept, where the command line needs them before anything heavy."""

from typing import Literal

DcnForm = Literal["standard", "plugin", "taps"]  # see dcn_forms
Reduced = Literal["float16", "int8"]  # see reduced_bundle
Weights = Literal["float32", "float16"]  # what kernels are stored in, see stored
Runtime = Literal["onnxruntime", "tensorrt"]  # whose 8-bit form, see int8
VerifyRuntime = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "openvino"]

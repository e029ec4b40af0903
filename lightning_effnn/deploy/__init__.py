"""Files that runtimes execute with integer kernels, and models that compute what these compute."""

from lightning_effnn.deploy.export import ExportReport, LeftInFloat, to_onnx
from lightning_effnn.deploy.prepared import Prepared, calibrate_, prepare

__all__ = ["ExportReport", "LeftInFloat", "Prepared", "calibrate_", "prepare", "to_onnx"]

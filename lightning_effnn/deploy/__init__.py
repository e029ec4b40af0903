"""Files that runtimes execute with integer kernels, and models that compute what these compute."""

from lightning_effnn.deploy.check import CheckReport, Timing, check
from lightning_effnn.deploy.export import ExportReport, LeftInFloat, to_onnx
from lightning_effnn.deploy.prepared import Prepared, calibrate_, prepare

__all__ = [
    "CheckReport",
    "ExportReport",
    "LeftInFloat",
    "Prepared",
    "Timing",
    "calibrate_",
    "check",
    "prepare",
    "to_onnx",
]

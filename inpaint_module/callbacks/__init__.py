"""Lightning callbacks: pictures, averages, guards, measurements and records of a run."""

from inpaint_module.callbacks.ema import EMA
from inpaint_module.callbacks.image_grid import ImageGrid, PredictionWriter
from inpaint_module.callbacks.nonfinite_guard import NonFiniteGuard
from inpaint_module.callbacks.run_record import RunRecord
from inpaint_module.callbacks.throughput import Throughput

__all__ = ["EMA", "ImageGrid", "NonFiniteGuard", "PredictionWriter", "RunRecord", "Throughput"]

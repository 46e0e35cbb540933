"""Where configs of earlier runs look for callbacks, which are in `inpaint_module.training`."""

from inpaint_module.training import EMA, ImageGrid, NonFiniteGuard, PredictionWriter, RunRecord, Throughput

__all__ = ["EMA", "ImageGrid", "NonFiniteGuard", "PredictionWriter", "RunRecord", "Throughput"]

"""Position to sample: the order, its split over ranks and workers, batches; samples and workers that fail."""

from datamodules.order.bucket_order import AspectRatios, BucketOrder, Buckets, OrderOptions, stream_order
from datamodules.order.failures import QUARANTINE, BadSample, Quarantine
from datamodules.order.loaders import BatchLoader, EvaluationLoader, LoadingOptions, StreamLoader
from datamodules.order.order import PLAN_VERSION, MixedOrder, Order, SampleOrder
from datamodules.order.sample_stream import RemovalMasks, SampleStream, evaluation_steps

__all__ = [
    "PLAN_VERSION",
    "QUARANTINE",
    "AspectRatios",
    "BadSample",
    "BatchLoader",
    "BucketOrder",
    "Buckets",
    "EvaluationLoader",
    "LoadingOptions",
    "MixedOrder",
    "Order",
    "OrderOptions",
    "Quarantine",
    "RemovalMasks",
    "SampleOrder",
    "SampleStream",
    "StreamLoader",
    "evaluation_steps",
    "stream_order",
]

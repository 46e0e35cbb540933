"""Position to sample: the order, its split over ranks and workers, batches; samples and workers that fail."""

from datamodules.order.bucket_order import BucketOrder, Buckets, ShardAspects
from datamodules.order.loaders import BatchLoader, EvaluationLoader, LoadingOptions, StreamLoader, add_masks
from datamodules.order.mixed_order import MixedOrder
from datamodules.order.order import PLAN_VERSION, Donors, Order, SampleOrder
from datamodules.order.quarantine import QUARANTINE, BadSample, Quarantine
from datamodules.order.sample_stream import OrderOptions, SampleStream, evaluation_steps, stream_order

__all__ = [
    "PLAN_VERSION",
    "QUARANTINE",
    "BadSample",
    "BatchLoader",
    "BucketOrder",
    "Buckets",
    "Donors",
    "EvaluationLoader",
    "LoadingOptions",
    "MixedOrder",
    "Order",
    "OrderOptions",
    "Quarantine",
    "SampleOrder",
    "SampleStream",
    "ShardAspects",
    "StreamLoader",
    "add_masks",
    "evaluation_steps",
    "stream_order",
]

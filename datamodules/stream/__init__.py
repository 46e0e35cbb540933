"""Position to sample: the order, and its split over ranks and workers."""

"""Tests compute on one thread, as do the processes they start: on models this small, threads wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is first imported

"""What is learned: noise levels, targets, and where an error counts."""

from inpaint_module.objectives.loss import Huber, LossWeights
from inpaint_module.objectives.objectives import DiffusionObjective, FlowMatchingObjective, Objective, objective_for

__all__ = ["DiffusionObjective", "FlowMatchingObjective", "Huber", "LossWeights", "Objective", "objective_for"]

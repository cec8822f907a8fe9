"""Prepare data sets: arrange a user's archives or folders as the tree that `sa2depth.data.sets` expects.

A `Recipe` (one file per data set) says which member belongs where; `make_plan` compares that with the disk; `execute`
carries the plan out and may be killed at any moment and run again; `what_is_missing` judges the result. Torch-free.
"""

from sa2depth.data.prepare.engine import Outcome, execute
from sa2depth.data.prepare.plan import Plan, make_plan
from sa2depth.data.prepare.recipe import Recipe, SplitState
from sa2depth.data.prepare.verdict import what_is_missing

__all__ = [
    "Outcome",
    "Plan",
    "Recipe",
    "SplitState",
    "execute",
    "make_plan",
    "what_is_missing",
]

"""The only module that imports albumentations.

Unless the variable below is set, albumentations looks online for a newer version when it is imported.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A

__all__ = ["A"]

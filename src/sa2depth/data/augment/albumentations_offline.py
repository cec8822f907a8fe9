"""The only module that imports albumentations.

Unless told not to, it asks the network for a newer version of itself when it is imported.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A

__all__ = ["A"]

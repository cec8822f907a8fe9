"""KITTI: the recordings (`recordings`), divided by Eigen (`eigen`) or by the benchmark itself (`official`)."""

from sa2depth.data.sets.kitti.eigen import KittiEigen, kitti_eigen
from sa2depth.data.sets.kitti.official import KittiOfficial, kitti_official

__all__ = ["kitti_eigen", "kitti_official"]

RECIPES = {"kitti_eigen": KittiEigen, "kitti_official": KittiOfficial}

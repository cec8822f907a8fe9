"""The names that users rely on exist, and importing the package stays light."""

import subprocess
import sys

import pytest

import sa2depth
from sa2depth import targets


def test_public_names():
    assert set(sa2depth.__all__) == {"__version__", "create_model", "load_model"}
    for name in sa2depth.__all__:
        assert getattr(sa2depth, name)
    assert set(sa2depth.__all__) <= set(dir(sa2depth))


def test_operators():
    from sa2depth.ops import dcnv3, rank_attention, selective_scan_2d

    assert all(map(callable, (dcnv3, rank_attention, selective_scan_2d)))


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("config.folders", "RunFolders"),
        ("data", "Augmentation BottomCentre DepthDataModule NyuBorder SyntheticScenes"),
        ("data", "custom diml_outdoor kitti_eigen kitti_official nyu_labelled nyu_sync sunrgbd"),
        ("lit", "CsvLog EpochLog Throughput TimeLeft adamw polynomial wandb_logger"),
        ("losses", "SILog"),
        ("models", "BinHead ConvDecoder ConvHead SA2Depth ScanHead SelectiveAttentionDecoder"),
        ("models.encoders", "InternImage TimmEncoder"),
    ],
)
def test_names_in_stored_configurations_and_checkpoints_stay(package, names):
    for name in names.split():
        assert callable(targets.find(f"sa2depth.{package}.{name}"))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_modell"):
        sa2depth.load_modell  # noqa: B018


def test_importing_the_package_does_not_import_torch():
    code = "import sys, sa2depth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

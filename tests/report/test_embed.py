import pytest
from PIL import Image

from made_run import save_noise
from sa2depth.errors import DataError
from sa2depth.report.embed import data_uri


def test_large_pictures_are_made_smaller(tmp_path):
    save_noise(tmp_path / "a.png", 100, 1000)
    assert data_uri(tmp_path / "a.png", 1_000_000).startswith("data:image/png;base64,")
    small = data_uri(tmp_path / "a.png", 30_000)
    assert small.startswith("data:image/webp;base64,")
    assert len(small) < 41_000
    Image.new("L", (9, 9)).save(tmp_path / "b.bmp")
    assert data_uri(tmp_path / "b.bmp", 1_000_000).startswith("data:image/webp;base64,")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut.png is not a readable picture"):
        data_uri(tmp_path / "cut.png", 1_000_000)

"""Depth maps with fewer pixels than their photograph: read and scored at their own size, upsampled for training."""

import numpy as np
import pytest
import torch
from PIL import Image

from sa2depth.data import Augmentation, DepthDataModule
from sa2depth.data.check.data_set import check
from sa2depth.data.loading.dataset import DepthDataset, collate
from sa2depth.data.loading.speed import stage_times
from sa2depth.data.sample import full_depth, nearest_resized
from sa2depth.data.sets.custom import custom
from sa2depth.depth_size import same_view
from sa2depth.errors import DataError
from sa2depth.report.contact_sheet import SheetRow, contact_sheet

PHOTO, DEPTH = (48, 64), (12, 16)


@pytest.fixture
def own(tmp_path):
    """Write photographs of one size with depth of another; a function of depth and mask size returns the source."""
    rng = np.random.default_rng(0)

    def make(size=DEPTH, mask=None, photo=PHOTO, count=4):
        (tmp_path / "rgb").mkdir(exist_ok=True)
        lines = ["image,depth,fx,fy,cx,cy" + (",mask" if mask else "")]
        for number in range(count):
            noise = rng.integers(0, 256, (*photo, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"rgb/{number}.png")
            metres = rng.permutation(size[0] * size[1]).reshape(size) / 100 + 0.5
            np.save(tmp_path / f"{number}.npy", metres.astype(np.float32))
            line = f"rgb/{number}.png,{number}.npy,50,50,32,24"
            if mask:
                half = np.zeros(mask, np.uint8)
                half[:, mask[1] // 2 :] = 255
                Image.fromarray(half).save(tmp_path / f"mask{number}.png")
                line += f",mask{number}.png"
            lines.append(line)
        (tmp_path / "my.csv").write_text("\n".join(lines) + "\n")
        return custom(list=tmp_path / "my.csv", scale=1.0)

    return make


@pytest.mark.parametrize(
    ("depth", "image", "fits"),
    [
        ((480, 640), (480, 640), True),
        ((120, 160), (480, 640), True),
        ((192, 256), (1440, 1920), True),  # a phone's laser
        ((480, 640), (968, 1296), True),  # ScanNet: 0.4 % apart
        ((3, 5), (31, 47), True),  # a rounding error of one pixel
        ((480, 640), (2320, 3088), True),
        ((90, 160), (480, 640), False),  # 16:9 beside 4:3
        ((160, 240), (480, 640), False),  # 3:2 beside 4:3
        ((160, 120), (480, 640), False),  # on its side
        ((960, 1280), (480, 640), False),  # larger
        ((480, 641), (480, 640), False),
        ((0, 0), (480, 640), False),
    ],
)
def test_which_sizes_show_the_same_view(depth, image, fits):
    assert same_view(depth, image) is fits


def test_an_evaluation_gets_the_map_as_it_is(own):
    source = own()
    item = DepthDataset(source)[1]
    assert item["image"].shape == (3, *PHOTO)
    assert item["depth"].shape == (1, *DEPTH)
    assert np.array_equal(item["depth"][0].numpy(), source[1].depth)
    assert item["intrinsics"][0].tolist() == [50, 0, 32]  # intrinsics of the photograph
    data = DepthDataModule(None, None, source, eval_batch_size=2, num_workers=0)
    assert next(iter(data.test_dataloader()))["depth"].shape == (2, 1, *DEPTH)


def test_training_gets_the_nearest_value_of_every_pixel(own):
    source = own()
    data = DepthDataModule(source, None, None, batch_size=4, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch["depth"].shape == (4, 1, *PHOTO)
    for depth, index in zip(batch["depth"], batch["index"].tolist(), strict=True):
        assert np.array_equal(depth[0].numpy(), np.kron(source[index].depth, np.ones((4, 4), np.float32)))


def test_nearest_is_the_pixel_in_which_the_centre_lies():
    values = np.arange(3)[None]
    assert nearest_resized(values, (2, 7)).tolist() == [[0, 0, 1, 1, 1, 2, 2]] * 2
    assert nearest_resized(np.arange(7)[None], (1, 3)).tolist() == [[1, 3, 5]]


def test_augmentation_moves_the_upsampled_map_with_its_image(own):
    source = own()
    whole = full_depth(source[0])
    change = Augmentation(crop=(32, 32), horizontal_flip=0.5)
    for epoch in range(8):
        item = DepthDataset(source, change)[(0, epoch)]
        assert item["depth"].shape == (1, 32, 32)
        image = (item["image"] * 255).round().byte().permute(1, 2, 0).numpy()
        for picture, depth in ((whole.image, whole.depth), (whole.image[:, ::-1], whole.depth[:, ::-1])):
            places = [
                (y, x) for y in range(17) for x in range(33)
                if np.array_equal(picture[y : y + 32, x : x + 32], image)
            ]  # fmt: skip
            for y, x in places:
                assert np.array_equal(item["depth"][0].numpy(), depth[y : y + 32, x : x + 32])
            if places:
                break
        else:
            pytest.fail("the window is not of this image")


@pytest.mark.parametrize("size", [PHOTO, DEPTH])
def test_a_mask_may_have_either_size(own, size):
    depth = own(mask=size)[0].depth
    assert depth.shape == DEPTH
    assert (depth[:, :8] == 0).all()
    assert (depth[:, 8:] > 0).all()


def test_a_mask_of_a_third_size_is_refused(own):
    with pytest.raises(
        DataError, match=r"mask0\.png: expected the size of its image 0\.png, 48x64, found 24x32"
    ):
        own(mask=(24, 32))[0]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            (12, 12),
            r"48x64, or a smaller one of its aspect \(as 9x12\), found 12x12: one of the two is cut or turned",
        ),
        ((16, 12), "one of the two is cut or turned"),
        ((64, 48), "it lies on its side"),
        ((96, 128), "found 96x128; it is larger: use a photograph of that size, or shrink the map"),
    ],
)
def test_other_shapes_are_refused_with_the_allowed_ones(own, size, words):
    source = own(size)
    with pytest.raises(DataError, match=rf"0\.npy: expected the size of its image 0\.png, {words}|{words}"):
        source[0]
    report = check({"test": source})
    assert {problem.kind for problem in report.problems} == {"wrong_size"}
    assert words.replace("\\", "") in report.problems[0].message


def test_check_counts_them(own):
    report = check({"test": own()})
    assert report.good, report.problems
    (note,) = report.splits[0].notes
    assert note.startswith(
        "depth of 12x16 beside a photograph of 48x64 (scored at its own size, upsampled for"
    )
    assert "4 times, first" in note


def test_maps_of_several_sizes_do_not_share_a_batch(own):
    items = [DepthDataset(own(size))[0] for size in (DEPTH, (24, 32))]
    with pytest.raises(DataError, match=r"depth maps of different sizes .*12x16.*24x32.*eval_batch_size=1"):
        collate(items)


def test_loader_speed_and_contact_sheet(own, tmp_path):
    source = own()
    times = stage_times(DepthDataset(source, Augmentation(crop=(32, 32))), 2, 0.01)
    assert {"decode image", "decode depth", "augment"} <= set(times)
    sample = source[0]
    assert contact_sheet([SheetRow("a", sample.image, sample.depth)], tmp_path / "sheet.png").is_file()


def test_sets_with_a_size_of_their_own_still_refuse_other_sizes(own):
    from dataclasses import replace

    from sa2depth.data.frame import read_frame

    frame = replace(own().frames[0], smaller_depth=False)
    with pytest.raises(DataError, match=r"expected the size of its image 0\.png, 48x64, found 12x16"):
        read_frame(frame)


def test_tensors_are_of_the_right_type(own):
    item = DepthDataset(own(), full_depth=True)[0]
    assert item["depth"].dtype == torch.float32
    assert item["depth"].is_contiguous()

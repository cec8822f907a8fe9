"""A user's own data, lists and folders: the scale is given, never guessed; every error names its line."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image

from sa2depth.data.check.data_set import check
from sa2depth.data.io.rows import read_rows
from sa2depth.data.sets.custom import COLUMNS, Defaults, custom, from_folders, from_list
from sa2depth.errors import ConfigError, DataError

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "samples" / "other"
SIZE = (4, 6)


@pytest.fixture
def files(tmp_path):
    """Three rooms with two images each, depth as PNG in millimetres, npy and npz in metres; returns the folder."""
    for room in ("attic", "bath", "cellar"):
        for number in range(2):
            for folder in ("rgb", "png", "npy", "npz"):
                (tmp_path / folder / room).mkdir(parents=True, exist_ok=True)
            name = f"{room}/{number}"
            Image.new("RGB", SIZE[::-1], (9, 8, 7)).save(tmp_path / "rgb" / f"{name}.jpg")
            metres = np.linspace(1, 2 + number, 24, dtype=np.float32).reshape(SIZE)
            cv2.imwrite(str(tmp_path / "png" / f"{name}.png"), np.rint(metres * 1000).astype(np.uint16))
            np.save(tmp_path / "npy" / f"{name}.npy", metres)
            np.savez(tmp_path / "npz" / f"{name}.npz", depth=metres, other=-metres)
    return tmp_path


@pytest.fixture
def written(files):
    """Write a list beside the files, from text or from rows as JSON lines."""

    def write(content, name="my.csv"):
        path = files / name
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


ROW = "rgb/attic/0.jpg,png/attic/0.png"
LIST = f"image,depth\n{ROW}\nrgb/bath/1.jpg,png/bath/1.png\n"


def metres(number=0):
    return np.linspace(1, 2 + number, 24, dtype=np.float32).reshape(SIZE)


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        LIST.replace("\n", "\r\n"),
        LIST.replace("\n", "\r"),
        "\ufeff" + LIST,
        "\n\r\n" + LIST.replace("\n", "\n\n"),
        LIST.replace(",", ";"),
        LIST.replace(",", "\t"),
        LIST.replace(",", " , "),
        LIST.rstrip("\n"),
        'image,"depth"\n"rgb/attic/0.jpg", "png/attic/0.png"\n"rgb/bath/1.jpg","png/bath/1.png"\n',
        "depth,image\n" + "\n".join(",".join(line.split(",")[::-1]) for line in LIST.splitlines()[1:]),
    ],
)
def test_tables_of_any_dialect_read_the_same(written, text):
    read = custom(written(text), scale=1000)
    assert read.ids == ["rgb/attic/0", "rgb/bath/1"]
    for sample, number in zip((read[0], read[1]), (0, 1), strict=True):
        np.testing.assert_allclose(sample.depth, metres(number), atol=5e-4)
        assert sample.image.shape == (*SIZE, 3)
        assert np.isnan(sample.intrinsics[:2]).all()


def test_quoted_cells_may_hold_the_separator(written, files):
    (files / "rgb" / "a, b.jpg").write_bytes((files / "rgb/attic/0.jpg").read_bytes())
    path = written('image,depth\n"rgb/a, b.jpg",png/attic/0.png\n')
    assert custom(path, scale=1000).ids == ["rgb/a, b"]


def test_json_lines_with_all_columns(written, files):
    Image.fromarray(np.repeat([[0, 0, 1, 2, 255, 0]], 4, 0).astype(np.uint8)).save(files / "mask.png")
    row = {
        "image": "rgb/attic/1.jpg",
        "depth": "npy/attic/1.npy",
        "scale": 2,
        "intrinsics": [[50, 0, 3], [0, 51, 2], [0, 0, 1]],
        "min": 0.6,
        "max": 1.25,
        "mask": "mask.png",
        "id": "first",
        "place": "top",
        "split": "train",
    }
    other = {
        "image": "rgb/bath/0.jpg",
        "depth": "png/bath/0.png",
        "scale": 1000.0,
        "split": "test",
        "mask": None,
    }
    path = written([row, other], "my.jsonl")
    read = custom(path, split="train")
    assert read.ids == ["first"]
    assert read.frames[0].place == "top"
    assert pickle.loads(pickle.dumps(read.frames[0])) == read.frames[0]
    expected = metres(1) / 2
    expected[(expected < 0.6) | (expected > 1.25)] = 0
    expected[:, [0, 1, 5]] = 0
    sample = read[0]
    np.testing.assert_allclose(sample.depth, expected, rtol=1e-6)
    assert 0 < (sample.depth > 0).mean() < 0.5
    assert sample.intrinsics.tolist() == [[50, 0, 3], [0, 51, 2], [0, 0, 1]]
    np.testing.assert_allclose(custom(path, split="test")[0].depth, metres(), atol=5e-4)


@pytest.mark.parametrize(
    ("columns", "cells"),
    [
        ("fx,fy,cx,cy", "50,51,3,2"),
        ("intrinsics", "50 51 3 2"),
        ("intrinsics", '"50,51, 3,2"'),
        ("intrinsics", "50 0 3 0 51 2 0 0 1"),
    ],
)
def test_cameras_in_tables(written, columns, cells):
    path = written(f"image,depth,{columns}\n{ROW},{cells}\n")
    assert custom(path, scale=1000, intrinsics=[9, 9, 9, 9])[0].intrinsics[:2].tolist() == [
        [50, 0, 3],
        [0, 51, 2],
    ]


def test_options_hold_where_the_row_is_silent(written):
    path = written(
        f"image,depth,scale,min,max,fx,fy,cx,cy\n{ROW},,,,,,,\nrgb/bath/0.jpg,png/bath/0.png,500,0,1.1,1,2,3,4\n"
    )
    read = custom(path, scale=1000, intrinsics=[5, 6, 7, 8], min_depth=1.5, max_depth=1.75)
    silent, own = read[0], read[1]
    expected = np.where((metres() >= 1.5) & (metres() <= 1.75), metres(), 0)
    np.testing.assert_allclose(silent.depth, expected, atol=6e-4)
    assert silent.intrinsics[:2].tolist() == [[5, 0, 7], [0, 6, 8]]
    assert own.depth.max() == 0  # all depths are 2 m or more with the row's own scale, and its limit is 1.1 m
    assert own.intrinsics[:2].tolist() == [[1, 0, 3], [0, 2, 4]]


def test_npz_by_name_of_its_array(written):
    path = written("image,depth\nrgb/attic/0.jpg,npz/attic/0.npz\n")
    np.testing.assert_allclose(custom(path, scale=1, key="depth")[0].depth, metres())
    assert (custom(path, scale=1, key="other")[0].depth == 0).all()  # negative: not measured
    with pytest.raises(DataError, match=r"0\.npz.*depth, other"):
        custom(path, scale=1)[0]


@pytest.mark.parametrize("ending", ["png", "npy", "npz"])
def test_the_scale_is_never_guessed(written, files, ending):
    path = written(f"image,depth,scale\n{ROW},1000\n\nrgb/bath/0.jpg,{ending}/bath/0.{ending},\n")
    with pytest.raises(DataError) as caught:
        custom(path)
    text = str(caught.value)
    assert f"my.csv, line 4: the scale of 0.{ending} is not given" in text
    assert "data.train.scale" in text
    assert "value / distance" in text
    with pytest.raises(DataError, match="is not given"):
        custom(images=files / "rgb", depths=files / ending)


def test_absolute_paths_and_places(written, files, tmp_path_factory):
    lines = [
        f"{files}/rgb/{room}/{n}.jpg,{files}/png/{room}/{n}.png" for room in ("attic", "bath") for n in (0, 1)
    ]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "list.csv"
    elsewhere.write_text("\n".join(["image,depth", *lines]))
    frames = from_list(elsewhere, Defaults(1000)).frames
    assert [frame.place for frame in frames] == ["attic", "attic", "bath", "bath"]
    assert [frame.id for frame in frames] == ["attic/0", "attic/1", "bath/0", "bath/1"]
    assert custom(elsewhere, scale=1000)[3].depth.shape == SIZE


def test_ids_and_places_do_not_depend_on_the_split(written):
    path = written("image,depth,split\nrgb/attic/0.jpg,a.png,a\nrgb/../rgb/bath/0.jpg,b.png,b\n")
    for split, name in (("a", "rgb/attic/0"), ("b", "bath/0")):
        (frame,) = from_list(path, Defaults(1), split).frames
        assert frame.id == name
        assert frame.place == name.split("/")[-2]


def test_place_is_the_first_folder_below_what_all_share(written):
    path = written(
        "image,depth\nrgb/attic/0.jpg,a.png\nrgb/attic/../bath/0.jpg,b.png\n./rgb/cellar/0.jpg,c.png\n"
    )
    assert [frame.place for frame in from_list(path, Defaults(1)).frames] == ["attic", "bath", "cellar"]
    path = written("image,depth,place\nrgb/attic/0.jpg,a.png,one\nrgb/bath/0.jpg,b.png,\n")
    assert [frame.place for frame in from_list(path, Defaults(1)).frames] == ["one", "bath"]


def test_a_row_without_depth_has_no_truth(written):
    path = written(f"image,depth\n{ROW}\nrgb/bath/0.jpg,\n")
    assert from_list(path, Defaults(1000)).without_truth == ["rgb/bath/0"]
    read = custom(path, scale=1000)
    assert read.ids == ["rgb/attic/0"]
    assert read.without_truth == 1


def test_parts_are_divided_by_place(files):
    parts = {
        part: custom(images=files / "rgb", depths=files / "npy", scale=1, part=part, every=2)
        for part in ("fit", "held_out", "all")
    }
    assert parts["fit"].ids == ["bath/0", "bath/1"]
    assert parts["held_out"].ids == ["attic/0", "attic/1", "cellar/0", "cellar/1"]
    assert len(parts["all"]) == 6
    np.testing.assert_allclose(parts["fit"][1].depth, metres(1))
    assert custom(images=files / "rgb", depths=files / "npy", scale=1, limit=2).ids == ["attic/0", "bath/1"]


def test_one_place_cannot_be_divided(files):
    with pytest.raises(ConfigError, match=r"all 2 are of one place.*column 'place'"):
        custom(images=files / "rgb/attic", depths=files / "npy/attic", scale=1, part="fit")


def test_splits_are_chosen_and_never_overlooked(written):
    path = written(f"image,depth,split\n{ROW},train\nrgb/bath/0.jpg,png/bath/0.png,test\n")
    assert custom(path, scale=1000, split="test").ids == ["rgb/bath/0"]
    assert len(custom(path, scale=1000, split="all")) == 2
    with pytest.raises(ConfigError, match=r"column 'split' with test \(1\), train \(1\).*custom_split"):
        custom(path, scale=1000)
    with pytest.raises(ConfigError, match=r"split=tain.*did you mean train.*test \(1\)"):
        custom(path, scale=1000, split="tain")
    with pytest.raises(DataError, match="line 3: column 'split' is empty"):
        custom(written(f"image,depth,split\n{ROW},train\nrgb/bath/0.jpg,a.png,\n"), scale=1000, split="train")
    with pytest.raises(ConfigError, match="no column 'split'"):
        custom(written(LIST), scale=1000, split="train")
    assert len(custom(written(LIST), scale=1000, split="all")) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"image,dept\n{ROW}\n", r"line 1: unknown column 'dept'; did you mean depth\?.*scale"),
        (f"Image,depth\n{ROW}\n", r"line 1: unknown column 'Image'; did you mean image"),
        (f"{ROW}\n", r"line 1: unknown column 'rgb/attic/0\.jpg'.*first line names the columns"),
        (f"image,depth,depth\n{ROW},x\n", "line 1: column 'depth' occurs twice: remove or rename one"),
        ("image\nrgb/attic/0.jpg\n", "expected a column 'depth', found image"),
        (f"image,depth\n{ROW},5\n", r"line 2: expected 2 cells \(image,depth\), found 3"),
        (f"image,depth\n{ROW}\n\nrgb/x.jpg\n", "line 4: expected 2 cells.*found 1"),
        (f'image,depth\n"{ROW}\n', "line 2: this is not valid CSV"),
        (
            f"image,depth\n{ROW}\n{ROW}\n",
            r"line 3: the id 'rgb/attic/0' is already used in .*my\.csv, line 2",
        ),
        (f"image,depth,id\n{ROW},a\nrgb/bath/0.jpg,d.png,a\n", "line 3: the id 'a' is already used in"),
        ("image,depth\n,d.png\n", "line 2: column 'image' is empty"),
        ("image,depth\na.npy,d.png\n", "line 2: expected an image.*found 'a.npy'"),
        (
            "image,depth\na.png,d.jpg\n",
            "line 2: expected a depth map as 16-bit PNG, npy or npz, found 'd.jpg'",
        ),
        (
            f"image,depth,scale\n{ROW},mm\n",
            "line 2: expected a number such as 0.5 in column 'scale', found 'mm'",
        ),
        (f"image;depth;max\n{ROW.replace(',', ';')};0,5\n", "line 2: expected a number.*found '0,5'"),
        (f"image,depth,scale\n{ROW},0\n", "line 2: expected a positive scale, found 0"),
        (f"image,depth,scale\n{ROW},nan\n", "line 2: expected a positive scale, found nan"),
        (f"image,depth,min,max\n{ROW},5,5\n", "line 2: expected metres with 0 <= min < max"),
        (f"image,depth,min\n{ROW},-1\n", "line 2: expected metres"),
        (f"image,depth,fx,fy\n{ROW},5,5\n", "line 2: a camera needs fx, fy, cx and cy, missing: cx, cy"),
        (f"image,depth,intrinsics\n{ROW},5 5 5\n", "line 2: expected fx fy cx cy, or the nine"),
        (f"image,depth,intrinsics\n{ROW},0 5 5 5\n", "line 2: .*focal lengths must be positive"),
        (f"image,depth,intrinsics\n{ROW},5 5 5 0 0 5 5 0 1\n", "line 2: .*zeros and its one"),
        (f"image,depth,intrinsics,fx\n{ROW},5 5 5 5,5\n", "line 2: give either fx, fy, cx, cy or intrinsics"),
        ("", "found an empty list"),
        ("image,depth\n", "found an empty list"),
        ("image,depth\n\xe9.jpg,a.png\n".encode("latin-1"), "expected UTF-8"),
    ],
)
def test_a_bad_table_names_file_line_and_what_to_do(written, text, told):
    path = written(text)
    with pytest.raises(DataError, match=rf"(?s)my\.csv.*{told}|my\.csv, {told}"):
        from_list(path, Defaults(1000))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"image": "a.png", "depth": "d.png"}\n\n{"image": \n', "line 3: expected one JSON object per line"),
        ('[{"image": "a.png"}]\n', r"line 1: expected a JSON object \{...\}, found list"),
        ('{"image": "a.png", "detph": "d.png"}\n', "line 1: unknown column 'detph'; did you mean depth"),
        (
            '{"image": ["a.png"], "depth": "d.png"}\n',
            r"line 1: expected text in column 'image', found \['a.png'\]",
        ),
        ('{"image": "a.png", "depth": "d.png", "scale": true}\n', "line 1: expected text in column 'scale'"),
        (
            '{"image": "a.png", "depth": "d.png", "intrinsics": [1, 2, 3, "x"]}\n',
            "line 1: expected fx fy cx cy",
        ),
        (
            '{"image": "a.png", "depth": "d.png", "intrinsics": [NaN, 2, 3, 4]}\n',
            "line 1: expected fx fy cx cy",
        ),
    ],
)
def test_bad_json_lines(written, text, told):
    with pytest.raises(DataError, match=rf"my\.jsonl, {told}"):
        from_list(written(text, "my.jsonl"), Defaults(1000))


def test_line_separators_inside_json_text_do_not_count(written):
    rows, columns = read_rows(written('{"image": "a\u2028b.png", "depth": "d.png"}\r\n', "my.jsonl"), COLUMNS)
    assert rows[0].text("image") == "a\u2028b.png"
    assert columns == {"image", "depth"}


def test_missing_and_other_lists_are_refused(files):
    with pytest.raises(DataError, match=r"no\.csv: cannot read this list \(No such file"):
        custom(files / "no.csv")
    with pytest.raises(DataError, match=r"whose name ends in \.csv"):
        custom(files / "my.json")


def test_missing_files_are_named_with_what_paths_are_relative_to(written, files):
    path = written(f"image,depth\n{ROW}\nrgb/bath/7.jpg,png/bath/0.png\n")
    with pytest.raises(
        DataError, match=r"1 of 4 files are missing(.|\n)*bath/7.jpg(.|\n)*the list's own folder"
    ):
        custom(path, scale=1000)


def test_folders_with_files_without_partner(files):
    (files / "npy/bath/1.npy").unlink()
    (files / "npy/bath/2.npy").touch()
    with pytest.raises(DataError) as caught:
        from_folders(files / "rgb", files / "npy", Defaults(1))
    assert "6 images; without depth map: bath/1\n" in str(caught.value)
    assert "6 depth maps; without image: bath/2\n" in str(caught.value)


def test_folders_without_files_or_with_two_of_one_name(files):
    with pytest.raises(DataError, match=r"nowhere: expected files.*does not exist"):
        from_folders(files / "nowhere", files / "npy", Defaults(1))
    with pytest.raises(
        DataError, match=r"rgb: expected files whose names end in \.png, \.npy, \.npz; it has none"
    ):
        from_folders(files / "rgb", files / "rgb", Defaults(1))
    (files / "rgb/bath/1.png").touch()
    with pytest.raises(DataError, match=r"1\.png: 1\.jpg has the same name except for the suffix"):
        from_folders(files / "rgb", files / "npy", Defaults(1))


def test_folders_may_be_links(files):
    (files / "other").mkdir()
    (files / "other" / "attic").symlink_to(files / "rgb" / "attic")
    (files / "deep").mkdir()
    (files / "deep" / "attic").symlink_to(files / "npy" / "attic")
    listing = from_folders(files / "other", files / "deep", Defaults(1))
    assert [frame.id for frame in listing.frames] == ["attic/0", "attic/1"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"no images are given: set data.train.list=my.csv"),
        ({"images": "a"}, "no images are given"),
        ({"list": "a.csv", "images": "a"}, "not both"),
        ({"images": "a", "depths": "b", "split": "test"}, "folders have no column"),
        ({"list": "a.csv", "scale": 0}, "positive scale"),
        ({"list": "a.csv", "scale": float("inf")}, "positive scale"),
        ({"list": "a.csv", "min_depth": 2, "max_depth": 1}, "min < max"),
        ({"list": "a.csv", "intrinsics": [1, 2]}, "expected fx fy cx cy"),
    ],
)
def test_invalid_options_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        custom(**options)


def test_configuration_divides_a_list_by_place(compose, written):
    rows = [
        {"image": f"rgb/{room}/{n}.jpg", "depth": f"npy/{room}/{n}.npy"}
        for room in ("attic", "bath", "cellar")
        for n in (0, 1)
    ]
    path = written(rows, "my.jsonl")
    options = ("data.train.scale=2", "data.train.every=3", "data.num_workers=0", "data.batch_size=2")
    module = instantiate(compose("data=custom", f"data.train.list={path}", *options))
    assert module.counts() == {"train": 4, "val": 2, "test": 2}
    assert "val and test share 2 images" in module.describe()
    batch = next(iter(module.test_dataloader()))
    np.testing.assert_allclose(batch["depth"][0, 0], metres() / 2, rtol=1e-6)


def test_one_place_is_refused_until_all_of_it_is_asked_for_everywhere(compose, written):
    path = written("image,depth\n" + "".join(f"rgb/attic/{n}.jpg,png/attic/{n}.png\n" for n in (0, 1)))
    options = ("data=custom", f"data.train.list={path}", "data.train.scale=1000")
    with pytest.raises(
        ConfigError, match=r"all 2 are of one place.*data\.train\.part=all data\.val\.part=all"
    ):
        instantiate(compose(*options)).setup()
    module = instantiate(compose(*options, *(f"data.{split}.part=all" for split in ("train", "val", "test"))))
    assert module.counts() == {"train": 2, "val": 2, "test": 2}
    assert "train and test share 2 images: the result is measured on training images" in module.describe()


def test_configuration_for_a_column_split(compose, written):
    lines = [f"rgb/{room}/{n}.jpg,png/{room}/{n}.png" for room in ("attic", "bath", "cellar") for n in (0, 1)]
    splits = ("train", "train", "train", "val", "test", "test")
    path = written("image,depth,split\n" + "\n".join(map(",".join, zip(lines, splits, strict=True))))
    module = instantiate(compose("data=custom_split", f"data.train.list={path}", "data.train.scale=1000"))
    assert module.counts() == {"train": 3, "val": 1, "test": 2}
    assert "share" not in module.describe()
    with pytest.raises(ConfigError, match="custom_split"):
        instantiate(compose("data=custom", f"data.train.list={path}", "data.train.scale=1000")).setup()


def test_configuration_for_an_evaluation(compose, files):
    options = (f"data.test.images={files}/rgb", f"data.test.depths={files}/npz", "data.test.key=depth")
    module = instantiate(compose("data=custom_test", "data.test.scale=1", "data.num_workers=0", *options))
    assert module.counts("test") == {"test": 6}
    assert module.source("train") is None
    np.testing.assert_allclose(next(iter(module.test_dataloader()))["depth"][0, 0], metres())


@pytest.mark.parametrize("name", ["custom", "custom_test"])
def test_nothing_given_says_what_to_give(compose, name):
    with pytest.raises(ConfigError, match=r"data\.train\.list=my\.csv.*data\.test"):
        instantiate(compose(f"data={name}")).setup("test")


@pytest.mark.real_data
def test_genuine_tum_and_redwood_images_in_one_list(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text(
        "image,depth,scale,fx,fy,cx,cy\r\n"
        f"{SAMPLES}/tum/TUM_color.png,{SAMPLES}/tum/TUM_depth.png,5000,525,525,319.5,239.5\r\n"
        f"{SAMPLES}/redwood/color/00000.jpg,{SAMPLES}/redwood/depth/00000.png,1000,,,,\r\n"
    )
    tum, redwood = custom(path)[0], custom(path)[1]
    assert tum.image.shape == redwood.image.shape == (480, 640, 3)
    assert np.median(tum.depth[tum.depth > 0]) == pytest.approx(2.415, abs=2e-3)
    assert np.median(redwood.depth[redwood.depth > 0]) == pytest.approx(1.861, abs=2e-3)
    assert tum.intrinsics[0, 0] == 525
    assert [frame.place for frame in custom(path).frames] == ["tum", "redwood"]
    assert custom(path).ids == ["tum/TUM_color", "redwood/color/00000"]


@pytest.mark.real_data
def test_genuine_folders():
    read = custom(
        images=SAMPLES / "redwood/color", depths=SAMPLES / "redwood/depth", scale=1000, max_depth=2.0
    )
    assert read.ids == ["00000", "00001", "00002"]
    depth = read[2].depth
    assert 0.9 < depth[depth > 0].min() < depth.max() <= 2.0


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("rgb\\attic\\0.jpg", "Only Windows understands paths with backslashes: write / instead."),
        ("rgb/attic/0.JPG", "0.JPG exists as 0.jpg: upper and lower case matter."),
        ("rgb/bath/cafe\u0301.jpg", "its accents are other characters: copy the name from the folder."),
        ("rgb/attic/9.jpg", ""),
    ],
)
def test_a_missing_path_with_another_spelling_is_explained(files, written, path, advice):
    """DenseDepth#113 and others: lists from Windows and from macOS."""
    (files / "rgb" / "bath" / "caf\u00e9.jpg").touch()
    rows = [{"image": path, "depth": "png/attic/0.png"}]
    listing = from_list(written(rows, "my.jsonl"), Defaults(scale=1000.0))
    with pytest.raises(DataError, match="files are missing below") as caught:
        listing.require()
    said = str(caught.value).split("\n")
    assert (advice in said[-2]) if advice else said[-2].startswith("  rgb")


@pytest.mark.parametrize(
    ("scale", "kinds"), [(1000, set()), (1, {"wrong_unit"}), (1_000_000, {"wrong_unit"})]
)
def test_the_check_finds_an_impossible_scale(written, scale, kinds):
    report = check({"train": custom(written(LIST), scale=scale)})
    assert {problem.kind for problem in report.problems} - {"blank_image"} == kinds

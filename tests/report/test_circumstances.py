from sa2depth.report.circumstances import circumstances


def texts(document):
    return {title: {fact.label: fact.text for fact in facts} for title, facts in circumstances(document)}


def test_many_sizes():
    box = {"top": 45, "bottom": 427, "left": 41, "right": 561}
    groups = texts(
        {
            "protocol": {"frame": None, "crop_box": None, "frame_cut": [352, 1216]},
            "native_sizes": {"530x730": 5050},
            "frames": {f"{427 + i}x561": {"images": 9 - i, "crop_box": box} for i in range(8)},
            "split_images": 5050,
        }
    )
    assert groups["Protocol"] == {"Cut to": "352 × 1216 px"}
    assert groups["Images"]["Sizes of the files"] == "530 × 730: 5050 images"
    words = groups["Images"]["Sizes scored"]
    assert words.startswith("427 × 561: 9 images, rows 45–426, columns 41–560 (382 × 520 px); 428")
    assert words.endswith("and 2 more sizes")
    assert "Run" not in groups


def test_circumstances_in_words():
    groups = texts(
        {
            "protocol": {
                "frame": [352, 1216], "input": "resize", "input_size": [480, 640], "max_side": None,
                "novel_rule": {"deep": 1.5}, "clip_both_at": 8.0, "flip": False,
            },
            "lr": 0.0001, "ids": list(range(50)), "metrics": {"abs_rel": 1},
        }
    )  # fmt: skip
    assert groups["Protocol"] == {
        "Frame": "352 × 1216 px", "Input size": "480 × 640 px", "Network's input": "resize",
        "Both clipped at": "8 m", "Flip averaging": "no", "Novel rule: deep": "1.5",
    }  # fmt: skip
    assert groups["Run"]["Lr"] == "0.0001"
    assert groups["Run"]["Ids"].endswith("29 and 20 more")
    assert "Images" not in groups

"""Wrong usage of `sa2depth data`: status 2 and a message with a usage that works."""

import pytest
from typer.testing import CliRunner

from sa2depth.cli import app

SMALL = "data.train.count=6 data.train.height=24 data.train.width=32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("check nyu_labeled", "did you mean nyu_labelled"),
        ("check nyu_sync data.train.splt=24231", "did you mean data.train.split"),
        ("check nyu_sync 24231", "write KEY=VALUE"),
        ("check nyu_sync data.train.split=5", "no split '5'"),
        ("check nyu_sync --split trian", "choose one of train, val, test, all"),
        ("check sunrgbd --split train", "it has: test"),
        ("check synthetic --root here", "has no folder: leave --root out"),
        ("prepare diml_outdoor --root ROOT", "no source for DIML outdoor is given: use --from with"),
        ("prepare diml --from EMPTY --root ROOT", "did you mean diml_outdoor"),
        ("prepare diml_outdoor --from EMPTY --root ROOT --depth raw", "has no option --depth"),
        (
            "prepare nyu_labelled --from EMPTY --root ROOT --depth dense",
            "--depth dense: choose raw or filled",
        ),
        ("prepare nyu_labelled --from EMPTY --root ROOT --depth raw", "no such file was given: leave it out"),
        ("prepare diml_outdoor --from x.zip --root ROOT", "no such file or folder"),
        ("prepare sunrgbd --from EMPTY --root ROOT", "no file of SUN RGB-D was found"),
        ("show synthetic -o sheet.jpg", "name it sheet.png"),
        ("show synthetic --split tset", "choose one of train, val, test"),
        ("show synthetic --augment nyuu", "did you mean nyu"),
        (f"show synthetic {SMALL} --augment nyu --count 1", "NYU border is defined on 480x640"),
        ("speed synthetic --workers many", "whole numbers, for example 0,1,4"),
        ("speed synthetic --workers 2,-1", "whole numbers"),
        (f"speed synthetic {SMALL} --batch-size 8 --workers 0 --seconds 0", "do not fill one batch"),
        ("speed nyu_labelled --root nowhere --workers 0", "files are missing"),
    ],
)
def test_wrong_usage_is_explained_with_status_2(tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "ROOT": tmp_path / "root"}
    result = CliRunner().invoke(app, ["data", *(str(places.get(word, word)) for word in arguments.split())])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "root").exists()

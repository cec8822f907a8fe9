import torch

from sa2depth.bench import evaluation
from sa2depth.bench.run import Settings, run


def test_the_earlier_way_and_the_present_one_are_timed(monkeypatch):
    monkeypatch.setattr(evaluation, "TRAIN_MAPS", 3)
    monkeypatch.setattr(evaluation, "TEST_IMAGES", 2)
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    rows = list(run(Settings(torch.device("cpu"), what=("evaluation",), size=(32, 64))))
    before = torch.get_num_threads()
    assert [(row.subject, row.backend) for row in rows] == [
        *(
            ("baseline of 3 maps and 2 images", f"as before, {threads} threads")
            for threads in sorted({1, min(4, before), before})
        ),
        ("baseline of 3 maps and 2 images", "now"),
        ("1 pictures", "a figure for each"),
        ("1 pictures", "now"),
    ]
    assert all(row.median_ms > 0 for row in rows)
    assert rows[0].speedup == rows[-2].speedup == 1

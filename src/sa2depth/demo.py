"""The demonstration: ``python -m sa2depth.demo`` trains, evaluates and predicts in minutes on two cores.

Everything runs through the same entry points that users call: ``experiment=demo`` and the predictor.
"""

import json
import sys
from datetime import datetime
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from sa2depth.interrupts import ending_at_ctrl_c
from sa2depth.stages import loading

with loading("PyTorch and Lightning", command=__name__ == "__main__"):
    import numpy as np
    from PIL import Image
    from rich.console import Console

    from sa2depth.config import launch
    from sa2depth.data.io.images import read_rgb
    from sa2depth.infer import Predictor, write
    from sa2depth.quoting import argument, hydra_quoted
    from sa2depth.report import colorize
    from sa2depth.train import train
    from sa2depth.weights.checkpoint import build, read_checkpoint


def main() -> None:
    """Entry point of ``python -m sa2depth.demo``; arguments are further overrides of the training."""
    folder = Path("runs/demo") / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S-%f")
    # quoted for Hydra, because names of folders may hold any character
    status = launch(
        "train", train, ["experiment=demo", f"hydra.run.dir={hydra_quoted(str(folder))}", *sys.argv[1:]]
    )
    # there is no model after --help, --cfg or with another run folder
    if status == 0 and (folder / "model.safetensors").is_file():
        with ending_at_ctrl_c():
            picture = predict_photo(folder)
            _summarise(folder, picture)
    sys.exit(status)


def predict_photo(folder: Path) -> Path | None:
    """Predict the depth of a real photo with the trained model.

    Args:
        folder: the run's folder, with ``model.safetensors``; the results go into ``photo/`` below it.

    Returns:
        Picture of photo and prediction side by side, or ``None`` if no photo is installed.
    """
    if find_spec("sklearn") is None:
        return None
    # trusted, because this very command line composed the classes that it names
    model = build(read_checkpoint(folder / "model.safetensors"), trusted=None)
    predictor = Predictor(model, size=_training_size(folder))
    # scikit-learn ships a photograph of the Summer Palace in Beijing
    with as_file(files("sklearn.datasets.images") / "china.jpg") as path:
        prediction = predictor(path, id="china")
        write(prediction, folder / "photo", "china")
        photo = read_rgb(path)
    picture = folder / "photo" / "photo.png"
    depth = colorize(prediction.depth, 0.0, prediction.max_depth)
    Image.fromarray(np.hstack((photo, depth))).save(picture)
    return picture


def _training_size(folder: Path) -> tuple[int, int]:
    """Height and width of the scenes; such a small network predicts well only at this size."""
    frame = json.loads((folder / "metrics.json").read_text())["protocol"]["frame"]
    return frame["height"], frame["width"]


def _summarise(folder: Path, picture: Path | None) -> None:
    scores = json.loads((folder / "metrics.json").read_text())
    model = scores["metrics"]["abs_rel"]
    median = scores["baselines"].get("median_depth_map", {}).get("abs_rel")
    console = Console(soft_wrap=True, highlight=False)
    compared = (
        ""
        if median is None
        else (
            "; the median depth map, the best predictor that ignores the image, has "
            f"{median:.3f}: the model is [bold]{median / model:.1f} times better[/bold]"
        )
    )
    console.print(f"\n[bold]abs_rel {model:.3f}[/bold] on unseen scenes{compared}")
    console.print(f"results  {folder / 'grid.png'}   image, truth, prediction and error of unseen scenes")
    console.print(f"         {folder / 'curves.png'}   loss and scores over the training")
    if picture is None:
        console.print(
            "no photo was predicted: install scikit-learn, which ships one (pip install 'sa2depth[dev]')"
        )
    else:
        console.print(f"         {picture}   a real photo and its depth")
    console.print(
        f"next     sa2depth predict YOUR.jpg -o out --checkpoint {argument(folder / 'model.safetensors')} "
        f"--size {'x'.join(map(str, _training_size(folder)))}"
    )


if __name__ == "__main__":
    main()

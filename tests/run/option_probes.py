"""Small results of a configuration that can be compared after every change of an option.

A probe takes a composed configuration and returns something to compare: an object with attributes, or numbers. It
uses the objects that a run would build, never the configuration itself.
"""

import hashlib
import zlib
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from sa2depth import eval as evaluation_program
from sa2depth import train as training_program
from sa2depth.data.augment.borders import BottomCentre
from sa2depth.data.listing import Listing
from sa2depth.data.sample import RawSample, camera_matrix
from sa2depth.data.sets import nyu
from sa2depth.data.sets.kitti import eigen as kitti
from sa2depth.data.source import missing_files_allowed
from sa2depth.errors import DataError, ShapeError
from sa2depth.lit import DepthModule
from sa2depth.masks import valid_mask
from sa2depth.metrics import DepthMetrics, evaluate_image, load_protocol
from sa2depth.models.sa2depth import DepthOutput
from sa2depth.ops.choice import backend
from sa2depth.report import write_metrics
from sa2depth.resources import conf_dir
from sa2depth.run.build import build_network, build_trainer
from views import uncut

CHANNELS = [16, 32, 64, 128]


def digest(*values):
    """A short text that identifies an array, tensor or text."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray):
            total.update(repr((value.shape, value.dtype)).encode() + np.ascontiguousarray(value).tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()[:16]


def shaken(model):
    """The model with noise on each parameter, so that layers that begin with zeros do something.

    The noise depends on the parameter's name alone, so that a parameter that an option adds does not change the others.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return model


def model(cfg):
    """Output of the network in training mode, stochastic depth included."""
    torch.manual_seed(0)
    network = shaken(build_network(cfg)).train()
    image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    return digest(*network(image))


def bin_head(cfg):
    """Weights and bins of the bin head alone: its number of bins must not differ from the depth head's."""
    head = instantiate(cfg.bins)(CHANNELS, min_depth=0.1, max_depth=10.0)
    return head.bins, [tuple(p.shape) for p in head.parameters()]


def depth_head(cfg):
    """Parameters of the depth head alone."""
    return [tuple(p.shape) for p in instantiate(cfg.head)(CHANNELS).parameters()]


def loss(cfg):
    """Loss of fixed depth maps."""
    rng = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(2, 1, 8, 8, generator=rng) * 5 + 0.5 for _ in range(2))
    return instantiate(cfg.loss)(pred, target, target > 1).item()


def optim(cfg):
    """Weights after two steps with different gradients."""
    network = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    optimizer = instantiate(cfg.optim)(network)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimizer.step()
    return digest(*network.parameters())


def schedule(cfg):
    """Learning rates of a run of 100 steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = instantiate(cfg.schedule)(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def _sample(height, width):
    rng = np.random.default_rng(0)
    image = rng.integers(20, 236, (height, width, 3), dtype=np.uint8)
    depth = rng.uniform(1.0, 9.0, (height, width)).astype(np.float32)
    return RawSample(image, depth, camera_matrix(519.0, 519.0, width / 2, height / 2), "made up")


def augment(cfg):
    """Several draws of what the data module does to a training sample."""
    change = instantiate(cfg.data).augment
    sample = _sample(370, 1226) if isinstance(change.border, BottomCentre) else _sample(480, 640)
    drawn = [change(sample, np.random.default_rng(number)) for number in range(6)]
    return digest(*(part for s in drawn for part in (s.image, s.depth, s.intrinsics)))


def border(cfg):
    """Size of a KITTI image after the border is cut."""
    height, width = instantiate(cfg.data).augment.border(_sample(370, 1226)).depth.shape
    return SimpleNamespace(height=height, width=width)


# Tens of thousands of frames: half a second each time, and the splits of one configuration ask for the same.
LONG_LISTINGS = {
    (module, name): lru_cache(maxsize=2)(getattr(module, name))
    for module, name in ((nyu, "sync"), (kitti, "eigen"))
}


class Data:
    """The samples of the data module and how it serves them; files of NYU, KITTI and SUN RGB-D need not exist."""

    def __init__(self, cfg):
        self.module = instantiate(cfg.data)

    def _source(self, split):
        with missing_files_allowed(), pytest.MonkeyPatch.context() as patch:
            for (module, name), remembered in LONG_LISTINGS.items():
                patch.setattr(module, name, remembered)
            return self.module.source(split)

    def ids(self, split):
        """The names of a split's samples."""
        return list(self._source(split).ids)

    def _seen(self, split):
        source = self._source(split)
        if source is None:
            return None
        if hasattr(source, "frames"):
            return SimpleNamespace(
                ids=digest(source.ids), without_truth=source.without_truth, **_frames(source)
            )
        samples = [source[index] for index in range(3)]
        return SimpleNamespace(
            ids=digest(len(source), *(sample.id for sample in samples)), **_samples(samples)
        )

    @cached_property
    def train(self):
        return self._seen("train")

    @cached_property
    def val(self):
        return self._seen("val")

    @cached_property
    def test(self):
        return self._seen("test")

    @property
    def train_loader(self):
        self._source("train")
        return self.module.train_dataloader()

    @property
    def test_loader(self):
        self._source("test")
        return self.module.test_dataloader()


def _samples(samples):
    return {
        "images": digest(*(sample.image for sample in samples)),
        "depths": digest(*(sample.depth for sample in samples)),
        "cameras": digest(*(sample.intrinsics for sample in samples)),
    }


def _frames(source):
    """The samples of files that exist; for others their paths and how they would be read."""
    frames = source.frames[:200]
    if all(file.exists() for file in frames[0].files):
        return _samples([source[index] for index in range(len(frames))])
    return {
        "images": digest(*(str(frame.image) for frame in frames)),
        "depths": digest(*((str(frame.depth), str(frame.mask), frame.decode) for frame in frames)),
        "cameras": digest(*((frame.intrinsics, str(frame.intrinsics_file)) for frame in frames)),
    }


data = Data


def scores(cfg):
    """Scores of a fixed prediction, some of it out of any range."""
    rng = np.random.default_rng(0)
    truth, guess = rng.uniform(0.0, 12.0, (2, 480, 640))
    return evaluate_image(guess, truth, load_protocol(cfg.protocol))


def refusal(cfg):
    """The error of the protocol about an evaluation of three images with truth and one without."""
    try:
        load_protocol(cfg.protocol).check_images(3, without_truth=1)
    except DataError as error:
        return str(error)
    return None


def report(cfg):
    """Text of ``metrics.json``."""
    protocol = load_protocol(cfg.protocol)
    metrics = DepthMetrics(protocol)
    depth = torch.linspace(0.5, 9.5, 480 * 640).reshape(1, 1, 480, 640)
    metrics.update(1.1 * depth, uncut(depth, ids=["one"]))
    return write_metrics(
        metrics.evaluation(), Path(cfg.paths.output_dir) / "report" / "metrics.json"
    ).read_text()


class Ramp(nn.Module):
    """A network whose depth grows from left to right, whatever its input."""

    def forward(self, image):
        ramp = torch.linspace(1.0, 2.0, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])
        return DepthOutput(ramp, torch.ones(len(image), 1))


def prediction(cfg):
    """Scored depth of an image whose sides are not multiples of 32, or the error."""
    module = DepthModule(Ramp(), protocol=load_protocol(cfg.protocol))
    try:
        return digest(module(torch.zeros(1, 3, 60, 90)))
    except ShapeError as error:
        return str(error)


def forms(trainer):
    """The values of ``compile`` and ``cuda_graph`` in the callbacks that choose the network's form."""
    found = [vars(callback) for callback in trainer.callbacks]
    return SimpleNamespace(
        **{name: told[name] for told in found for name in ("compile", "cuda_graph") if name in told}
    )


def trainer(cfg):
    """Lightning's trainer as it is built on a machine with two GPUs; it touches none of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lightning.fabric.accelerators.cuda", "lightning.pytorch.accelerators.cuda"):
            patch.setattr(f"{module}.num_cuda_devices", lambda: 2)
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Lightning sets it for `deterministic`
        before = torch.are_deterministic_algorithms_enabled()
        built = build_trainer(cfg)
        built.deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(before)
    built.connector = built._accelerator_connector
    kinds = {type(callback).__name__ for callback in built.callbacks}
    built.max_time = "Timer" in kinds
    built.forms = forms(built)
    built.enable_model_summary = bool(kinds & {"ModelSummary", "RichModelSummary"})
    built.ddp = SimpleNamespace(**getattr(built.strategy, "_ddp_kwargs", {}))
    built.sync_batchnorm = type(getattr(built.strategy, "_layer_sync", None)).__name__
    return built


def callbacks(cfg):
    """The callbacks by name."""
    return SimpleNamespace(**{name: instantiate(node) for name, node in cfg.callbacks.items()})


def logger(cfg):
    """The loggers by name; for W&B the settings with which it would start a run without login."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        built = {name: instantiate(node) for name, node in cfg.logger.items()}
    if "wandb" in built:
        built["wandb"] = SimpleNamespace(
            offline=built["wandb"]._wandb_init["mode"] == "offline", **built["wandb"]._wandb_init
        )
    return SimpleNamespace(**built)


def folder(cfg):
    """Folder of a run, without its date."""
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = OmegaConf.load(conf_dir() / "hydra" / "default.yaml")
    return str(Path(cfg.hydra.run.dir).parent)


def training(cfg):
    """The arguments of the trainer and of the final report; nothing is trained."""
    seen = SimpleNamespace(plan={})

    def finish(folder, evaluation, examples, circumstances, *, baseline, **kwargs):
        seen.baseline = baseline is not None  # measured for real: test_metrics_are_the_mean_of_the_table
        return {"abs_rel": 0.0}

    def fit(self, module, datamodule, ckpt_path):
        seen.module, seen.ops = module, backend()
        seen.resume = ckpt_path  # for real: test_goes_on_from_the_last_checkpoint
        seen.float32_matmul_precision = torch.get_float32_matmul_precision()
        seen.order = list(datamodule.train_dataloader().sampler)[:20]
        seen.weights = digest(*module.model.state_dict().values())
        depth = torch.linspace(0.0, 100.0, 10_001)
        seen.counted = int(valid_mask(depth, module.min_depth, module.max_depth).sum())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listing, "require", lambda *args, **kwargs: None)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        patch.setattr(L.Trainer, "fit", fit)
        patch.setattr(L.Trainer, "test", lambda *args, **kwargs: None)
        patch.setattr(training_program, "finish", finish)
        patch.setattr(training_program, "read_training_state", lambda path: None)
        patch.setattr(
            training_program,
            "print_plan",
            lambda title, cfg, data, protocol, rows, multiple: seen.plan.update(rows),
        )
        training_program.train(cfg)
    return seen


class _LoadedError(Exception):
    """Ends the evaluation as soon as it loads what it scores."""


def evaluation(cfg):
    """The input of the evaluation program: a checkpoint, or files of predictions."""
    seen = SimpleNamespace()

    def load_model(checkpoint, *, min_depth, max_depth, trusted):
        seen.trusted = trusted
        seen.checkpoint, seen.ops = checkpoint, backend()
        seen.released = SimpleNamespace(min_depth=min_depth, max_depth=max_depth)
        seen.float32_matmul_precision = torch.get_float32_matmul_precision()
        return torch.nn.Identity()

    def trainer(cfg, with_logs):
        seen.cuda_graph = forms(build_trainer(cfg, with_logs)).cuda_graph
        raise _LoadedError

    def prediction_files(folder, source, reader, protocol):
        seen.predictions = folder
        seen.prediction_scale, seen.prediction_resize = reader.units_per_metre, reader.resize
        raise _LoadedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listing, "require", lambda *args, **kwargs: None)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        patch.setattr(evaluation_program, "load_model", load_model)
        patch.setattr(evaluation_program, "check_input", lambda *args: None)
        patch.setattr(evaluation_program, "build_trainer", trainer)
        patch.setattr(evaluation_program, "PredictionFiles", prediction_files)
        with pytest.raises(_LoadedError):
            evaluation_program.evaluate(cfg)
    return seen

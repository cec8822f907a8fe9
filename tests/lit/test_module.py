"""The LightningModule: loss on valid pixels, mirror averaging, compiled layers, clear words for a broken loss."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from sa2depth.errors import ConfigError, DataError, ShapeError, UserError
from sa2depth.lit import DepthModule, polynomial
from sa2depth.losses import SILog
from sa2depth.metrics import Protocol, evaluate_image, flip_average
from sa2depth.report import Sizes
from sa2depth.runtime.compiled import compile_layers, compiled


class Output(NamedTuple):
    depth: torch.Tensor


class Brightness(torch.nn.Module):
    """Predicts ``factor * red``, plus a ramp that mirroring cannot undo."""

    def __init__(self, ramp=0.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.ramp = ramp
        self.spec = {"name": "brightness"}

    def forward(self, image):
        self.seen = tuple(image.shape[-2:])
        across = torch.linspace(0, self.ramp, image.shape[-1])
        return Output(image[:, :1] * self.factor + across)


def _protocol(**changes):
    return Protocol(**{"name": "test", "version": 1, "min_depth": 0.1, "max_depth": 10.0, **changes})


def _batch(depth=1.0, size=(32, 64), first=0):
    return {
        "image": torch.rand(2, 3, *size) * 0.5 + 0.5,
        "depth": torch.full((2, 1, *size), depth),
        "id": [f"{first}", f"{first + 1}"],
        "index": torch.arange(first, first + 2),
    }


def _module(model=None, **options):
    options = {"protocol": _protocol(), "min_depth": 0.5, "max_depth": 5.0, **options}
    module = DepthModule(model or Brightness(), SILog(), **options)
    module.log = lambda *_args, **_kwargs: None
    return module


def test_the_loss_sees_only_depths_inside_the_range():
    module, batch = _module(), _batch()
    batch["depth"][0], batch["depth"][1] = 2.0, 0.0
    inside = module.training_step(batch, 0)
    for depth in (0.0, 0.4, 5.5, 100.0):
        batch["depth"][1] = depth
        assert torch.equal(module.training_step(batch, 0), inside), depth
    batch["depth"][1] = 4.9
    assert not torch.equal(module.training_step(batch, 0), inside)


def test_training_images_that_the_network_cannot_take():
    module = _module()
    module.model.stride_multiple = 32
    with pytest.raises(
        ShapeError, match=r"training images of .*multiples of 32; set 'augment\.crop=\[32,64\]'"
    ):
        module.training_step(_batch(size=(48, 64)), 0)


def test_an_image_without_truth_gives_a_zero_loss_with_gradients():
    module = _module()
    loss = module.training_step(_batch(depth=0.0), 0)
    loss.backward()
    assert loss == 0
    assert module.model.factor.grad == 0


def test_training_without_any_truth_ends_with_the_reason():
    module, batch = _module(), _batch(depth=0.002)  # millimetres read as metres, twice
    for step in range(19):
        module.training_step(batch, step)
    with pytest.raises(
        DataError, match=r"none of the first 20 training batches .* between 0\.002 and 0\.002 m"
    ):
        module.training_step(batch, 19)


def test_a_short_epoch_without_truth_ends_too():
    module, batch = _module(), _batch(depth=0.0)
    module._trainer = SimpleNamespace(num_training_batches=2, global_step=0)
    module.training_step(batch, 0)
    with pytest.raises(
        DataError, match=r"none of the first 2 training batches .* Those of 0, 1 are all 0: check"
    ):
        module.training_step(batch, 1)


def test_truth_that_is_sparse_is_enough():
    module, empty, first = _module(), _batch(depth=0.0), _batch(depth=0.0)
    first["depth"][1, 0, 3, 3] = 2.0
    for step, batch in enumerate([empty, first, *[empty] * 40]):
        module.training_step(batch, step)


def test_one_value_for_a_batch_norm_is_explained():
    class Pooled(Brightness):
        def forward(self, image):
            return Output(torch.nn.BatchNorm2d(3)(image[:1, :, :1, :1]))

    with pytest.raises(
        ShapeError, match=r"images of 32x64 in batches of 2 give one: set a larger data.batch_size"
    ):
        _module(Pooled()).training_step(_batch(), 0)


def test_a_broken_loss_names_the_images_and_a_way_out():
    module, batch = _module(), _batch()
    batch["image"][1, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match=r"nan at step 0, on the images 0, 1.*debug=anomaly"):
        module.training_step(batch, 0)


def test_flip_averaging_follows_the_protocol():
    image = _batch()["image"]
    model = Brightness(ramp=3.0)
    plain = _module(model)(image)
    flipped = _module(model, protocol=_protocol(flip=True))(image)
    assert torch.equal(plain, model(image).depth)
    assert torch.equal(flipped, flip_average(plain, model(image.flip(-1)).depth.flip(-1)))
    assert not torch.equal(plain, flipped)


def test_image_and_truth_are_cut_to_the_frame_before_anything_else():
    module = _module(protocol=_protocol(frame=(32, 64), crop="garg"))
    batch = _batch(size=(40, 75))
    batch["depth"] = torch.rand(2, 1, 40, 75) * 3 + 0.5
    scored = module.score(batch)
    top, left = 8, 5  # bottom, and int((75 - 64) / 2)
    assert torch.equal(scored.image, batch["image"][..., top:, left : left + 64])
    assert torch.equal(scored.truth, batch["depth"][..., top:, left : left + 64])
    assert torch.equal(scored.prediction, 2 * scored.image[:, :1])
    assert scored.sizes == Sizes((40, 75), (32, 64), (32, 64))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"input": "pad"}, (64, 96)),
        ({"input": "resize", "input_size": (32, 64)}, (32, 64)),
        ({"input": "max_side", "max_side": 42}, (32, 64)),
        ({"input": "bottom_centre", "input_size": (32, 64), "crop": "garg"}, (32, 64)),
    ],
)
def test_the_network_sees_what_the_input_policy_says_and_the_truth_keeps_its_pixels(options, seen):
    module = _module(protocol=_protocol(flip=True, **options))
    batch = _batch(size=(50, 67))
    batch["depth"] = torch.rand(2, 1, 50, 67) * 3 + 0.5
    batch["image"] = torch.full((2, 3, 50, 67), 0.75)
    if options["input"] == "bottom_centre":
        batch = {k: v[..., -36:, :] if k in ("image", "depth") else v for k, v in batch.items()}
    scored = module.score(batch)
    assert module.model.seen == seen
    assert scored.sizes.network == seen
    assert torch.equal(scored.truth, batch["depth"])
    torch.testing.assert_close(scored.prediction, torch.full_like(batch["depth"], 1.5))


def test_a_frame_that_the_network_cannot_take_is_refused():
    with pytest.raises(ShapeError, match=r"50x67.*protocol.input=pad"):
        _module().score(_batch(size=(50, 67)))


def test_validation_is_scored_under_the_protocol_too():
    module = _module(protocol=_protocol(frame=(32, 64), crop="garg", flip=True))
    batch = _batch(size=(40, 75))
    module.validation_step(batch, 0)
    expected = [
        evaluate_image(p, t, module.protocol)["abs_rel"]
        for p, t in zip(module(batch["image"]), batch["depth"][..., 8:, 5:69], strict=True)
    ]
    assert [row["abs_rel"] for row in module.val_metrics.table()] == pytest.approx(expected, rel=1e-12)


def test_an_image_without_truth_cannot_be_scored_and_is_named():
    batch = _batch()
    del batch["depth"]
    for step in (_module().validation_step, _module().test_step):
        with pytest.raises(DataError, match=r"0, 1: no ground truth"):
            step(batch, 0)


def test_keeps_the_worst_and_the_best_test_images():
    module = _module(examples=1)
    for first in range(0, 10, 2):
        batch = _batch(size=(32, 64), first=first)
        batch["image"][:] = 0.5
        # 1 metre is predicted; truths of 1, 2, ... make errors that grow with the index
        for place in range(2):
            batch["depth"][place] = 1.0 + (first + place) % 7
        module.test_step(batch, 0)
    worst, best = module.examples.get(6), module.examples.get(0)
    assert len(module.examples) == 2
    assert (worst.id, best.id) == ("6", "0")
    assert worst.image.shape == (32, 64, 3)
    assert worst.image.dtype == "uint8"
    assert worst.prediction.shape == worst.truth.shape == (32, 64)
    assert (worst.truth == 7.0).all()


def test_the_spec_travels_in_the_checkpoint():
    assert _module().hparams["spec"] == {"name": "brightness"}
    assert _module().hparams["protocol"] == "test"


def test_a_module_for_evaluation_says_what_it_lacks():
    module = DepthModule(Brightness(), protocol=_protocol())
    with pytest.raises(RuntimeError, match="no loss"):
        module.training_step(_batch(), 0)
    with pytest.raises(RuntimeError, match="no optimiser"):
        module.configure_optimizers()


class Mix(torch.nn.Conv2d):
    def forward(self, image):
        return super().forward(image)


class Encoded(Brightness):
    """With an encoder, which is what is compiled of this network (layers of PyTorch itself would not be)."""

    def __init__(self):
        super().__init__()
        self.encoder = Mix(3, 3, 1)

    def forward(self, image):
        return super().forward(self.encoder(image).square())


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_layers_are_compiled_for_training_and_scored_as_they_are(fresh_dynamo):
    calls = []

    def backend(graph, inputs):
        calls.append("made")

        def run(*arguments):
            calls.append("run")
            return graph.forward(*arguments)

        return run

    module = _module(Encoded())
    compile_layers(module.model, backend)
    module.training_step(_batch(), 0).backward()
    assert calls == ["made", "run"]
    for size in ((32, 64), (64, 64), (32, 96)):
        module.validation_step(_batch(size=size), 0)
        module.test_step(_batch(size=size), 0)
        module(_batch(size=size)["image"])
    assert calls == ["made", "run"]
    module.training_step(_batch(), 0)
    assert calls == ["made", "run", "run"]


def test_where_layers_cannot_be_compiled_auto_trains_them_as_they_are(caplog):
    module = _module(Encoded(), compile="auto")
    with caplog.at_level("DEBUG"):
        module.on_fit_start()
    assert not compiled(module.model)
    assert "layers are not compiled: cpu is no CUDA device" in caplog.text
    assert module.training_step(_batch(), 0).isfinite()


def test_where_layers_cannot_be_compiled_true_is_an_error():
    with pytest.raises(ConfigError, match=r"compile=true: cpu is no CUDA device; use compile=auto"):
        _module(Encoded(), compile=True).on_fit_start()


@pytest.mark.parametrize(("compile", "expected"), [("auto", True), (True, True), (False, False)])
def test_where_layers_can_be_compiled_they_are_once(compile, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.module.why_not_compiled", lambda device: "")
    module = _module(Encoded(), compile=compile)
    module.on_fit_start()
    assert compiled(module.model) is expected
    first = module.model.encoder._compiled_call_impl
    module.on_fit_start()  # a second fit
    assert module.model.encoder._compiled_call_impl is first


@pytest.mark.parametrize(("steps", "expected"), [(9999, False), (10_000, True), (float("inf"), True)])
def test_auto_compiles_what_is_long_enough(steps, expected, monkeypatch, fresh_dynamo):
    monkeypatch.setattr("sa2depth.lit.module.why_not_compiled", lambda device: "")
    module = _module(Encoded(), compile="auto")
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(estimated_stepping_batches=steps))
    monkeypatch.setattr(type(module), "trainer", property(lambda self: self._trainer))
    module.on_fit_start()
    assert compiled(module.model) is expected


def test_graphs_without_a_cuda_device():
    module = _module(Encoded(), cuda_graph="auto")
    attach(module, SimpleNamespace(accumulate_grad_batches=1))
    module.on_fit_start()
    module.on_train_epoch_start()
    assert module.training_step(_batch(), 0).isfinite()
    with pytest.raises(ConfigError, match="cuda_graph=true: cpu is no CUDA device"):
        _module(Encoded(), cuda_graph=True).on_fit_start()


def attach(module, trainer):
    """Give a module a trainer that is none."""
    module.__class__ = type("Attached", (type(module),), {"trainer": trainer})
    module.log = lambda *args, **kwargs: None


@pytest.mark.parametrize(
    ("option", "batches", "strategy", "expected"),
    [
        ("auto", 1, SingleDeviceStrategy(), "ready"),
        ("auto", 2, SingleDeviceStrategy(), "without"),
        ("auto", 1, DDPStrategy(), "ready"),
        ("auto", 1, FSDPStrategy(), "without"),
        (True, 1, DDPStrategy(), "ready"),
        (True, 2, SingleDeviceStrategy(), "accumulate_grad_batches"),
        (True, 1, FSDPStrategy(), "FSDPStrategy may move the weights"),
        (False, 1, SingleDeviceStrategy(), "without"),
    ],
)
def test_when_training_is_captured(option, batches, strategy, expected, monkeypatch):
    module = _module(Encoded(), cuda_graph=option)
    attach(module, SimpleNamespace(accumulate_grad_batches=batches, strategy=strategy))
    monkeypatch.setattr(type(module), "device", property(lambda self: torch.device("cuda", 0)))
    if expected not in ("ready", "without"):
        with pytest.raises(ConfigError, match=f"cuda_graph=true: .*{expected}"):
            module.on_fit_start()
        return
    module.on_fit_start()
    module.on_train_epoch_start()
    assert (module._graphed is not None) is (expected == "ready")
    module.on_fit_end()
    assert module._graphed is None


def test_what_callbacks_change_is_captured_anew(monkeypatch):
    module = _module(Encoded(), cuda_graph="auto")
    trainer = SimpleNamespace(accumulate_grad_batches=1, strategy=SingleDeviceStrategy())
    attach(module, trainer)
    monkeypatch.setattr(type(module), "device", property(lambda self: torch.device("cuda", 0)))
    module.model.norm = torch.nn.BatchNorm2d(3)

    def captured():
        module.on_train_epoch_start()
        return module._graphed

    first = captured()
    assert first is not None
    assert captured() is first
    seen = [first]
    for change in (
        lambda: module.model.encoder.requires_grad_(False),
        lambda: module.model.norm.eval(),
        lambda: setattr(module.model.norm, "running_mean", torch.zeros(3)),
        lambda: setattr(module.model.norm, "momentum", None),
    ):
        change()
        seen.append(captured())
        assert seen[-1] is not None
        assert seen[-1] is not seen[-2]
        assert captured() is seen[-1]
    trainer.accumulate_grad_batches = 2
    assert captured() is None
    trainer.accumulate_grad_batches = 1
    assert captured() is not None


def test_half_precision_weights_are_refused():
    module = _module(Encoded())
    module.model.bfloat16()
    with pytest.raises(ConfigError, match="use bf16-mixed or 16-mixed"):
        module.on_fit_start()


@pytest.mark.parametrize("end_factor", [1.0, 0.5])
def test_a_run_without_an_end(end_factor):
    schedule = functools.partial(polynomial, end_factor=end_factor)
    module = _module(Encoded())
    module.optim = lambda model: torch.optim.SGD(model.parameters(), 0.1)
    module.schedule = schedule
    attach(module, SimpleNamespace(estimated_stepping_batches=float("inf")))
    if end_factor == 1:
        optimizer = module.configure_optimizers()["optimizer"]
        assert optimizer.param_groups[0]["lr"] == 0.1
    else:
        with pytest.raises(ConfigError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
            module.configure_optimizers()


def test_another_word_for_compile_is_an_error():
    with pytest.raises(ConfigError, match="compile=yes: choose auto, true or false"):
        _module(compile="yes")
    with pytest.raises(ConfigError, match="cuda_graph=maybe: choose auto, true or false"):
        _module(cuda_graph="maybe")


def test_the_prediction_is_brought_to_a_truth_with_fewer_pixels_than_its_image():
    module, batch = _module(), _batch(size=(32, 64))
    across = torch.linspace(0.5, 1, 64).expand(2, 3, 32, 64)
    batch["image"], batch["depth"] = across.clone(), torch.full((2, 1, 8, 16), 2.0)
    scored = module.score(batch)
    assert scored.truth.shape == scored.prediction.shape == (2, 1, 8, 16)
    assert scored.image.shape == (2, 3, 32, 64)
    assert scored.sizes == Sizes((32, 64), (8, 16), (32, 64))
    # a ramp at the centres of the truth's pixels: the mean of the four columns that each covers
    wanted = 2 * across[:, :1].unfold(3, 4, 4).mean(-1)[:, :, ::4]
    torch.testing.assert_close(scored.prediction, wanted)
    module.test_metrics.update(scored.prediction, scored.truth, batch["index"], batch["id"])
    row = module.test_metrics.table()[0]
    assert row["pixels"] == 8 * 16
    assert row["abs_rel"] == pytest.approx(
        evaluate_image(wanted[0], batch["depth"][0], _protocol())["abs_rel"]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"frame": (32, 32)},
            r"frame=32x32\), which a depth map of 8x16 beside an image of 32x64 does not have",
        ),
        ({"crop": "nyu_pixels"}, "crop=nyu_pixels"),
        ({"input": "bottom_centre", "input_size": (32, 64)}, "input=bottom_centre"),
    ],
)
def test_protocols_that_count_pixels_of_the_image_refuse_a_smaller_truth(options, words):
    batch = _batch(size=(32, 64)) | {"depth": torch.ones(2, 1, 8, 16)}
    with pytest.raises(ShapeError, match=f"protocol 'test' counts in pixels of the image .*{words}"):
        _module(protocol=_protocol(**options)).score(batch)


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (16, 8)])
def test_a_truth_that_shows_another_view_is_refused(size):
    batch = _batch(size=(32, 64)) | {"depth": torch.ones(2, 1, *size)}
    with pytest.raises(ShapeError, match="fewer pixels of the same aspect"):
        _module().score(batch)


def test_a_crop_in_shares_is_counted_in_the_truths_own_pixels():
    protocol = _protocol(crop="garg")
    batch = _batch(size=(320, 640)) | {"depth": torch.full((2, 1, 80, 160), 2.0)}
    module = _module(protocol=protocol)
    scored = module.score(batch)
    module.test_metrics.update(scored.prediction, scored.truth, batch["index"], batch["id"])
    top, bottom, left, right = protocol.crop_box(80, 160)
    assert module.test_metrics.table()[0]["pixels"] == (bottom - top) * (right - left)


@pytest.mark.parametrize("option", ["auto", False])
@pytest.mark.parametrize("stage", ["validation", "test"])
def test_what_is_scored_is_replayed_on_cuda_and_gives_its_memory_back(option, stage, monkeypatch):
    made = []

    class Replayed:
        def __init__(self, function, calls):
            made.append(calls)
            self.function = function

        def __call__(self, shown):
            made.append("replayed")
            return self.function(shown)

    monkeypatch.setattr("sa2depth.lit.module.Graphed", Replayed)
    module = _module(Encoded(), cuda_graph=option)
    flip = module.protocol.flip
    attach(module, SimpleNamespace(test_dataloaders=SimpleNamespace(dataset=range(2))))
    module.log_dict = lambda *args, **kwargs: None
    batch = {**_batch(), "index": torch.arange(2)}
    expected = module(batch["image"])
    monkeypatch.setattr(type(module), "device", property(lambda self: torch.device("cuda", 0)))
    getattr(module, f"on_{stage}_epoch_start")()
    torch.testing.assert_close(module(batch["image"]), expected, rtol=0, atol=0)
    assert made == ([1 + flip, *["replayed"] * (1 + flip)] if option else [])
    getattr(module, f"{stage}_step")(batch, 0)
    del made[:]
    getattr(module, f"on_{stage}_epoch_end")()
    torch.testing.assert_close(module(batch["image"]), expected, rtol=0, atol=0)
    assert made == []


def test_graphs_are_refused_where_there_is_no_device_for_them():
    module = _module(Encoded(), cuda_graph=True)
    with pytest.raises(ConfigError, match="cuda_graph=true: cpu is no CUDA device"):
        module.on_test_epoch_start()

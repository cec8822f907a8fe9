"""The LightningModule: loss on valid pixels, flip averaging, scores, a clear message for a broken loss."""

import functools
from types import SimpleNamespace

import pytest
import torch

from brightness import Brightness, Encoded, Output, batch_of, module_of, protocol_of
from sa2depth.errors import ConfigError, DataError, ShapeError, UserError
from sa2depth.lit import DepthModule, polynomial
from sa2depth.metrics import Sizes, evaluate_image, flip_average


def test_the_loss_sees_only_depths_inside_the_range():
    module, batch = module_of(), batch_of()
    batch["depth"][0], batch["depth"][1] = 2.0, 0.0
    inside = module.training_step(batch, 0)
    for depth in (0.0, 0.4, 5.5, 100.0):
        batch["depth"][1] = depth
        assert torch.equal(module.training_step(batch, 0), inside), depth
    batch["depth"][1] = 4.9
    assert not torch.equal(module.training_step(batch, 0), inside)


def test_training_images_that_the_network_cannot_take():
    module = module_of()
    module.model.stride_multiple = 32
    with pytest.raises(
        ShapeError, match=r"training images are .*multiples of 32: set 'augment\.crop=\[32,64\]'"
    ):
        module.training_step(batch_of(size=(48, 64)), 0)


def test_an_image_without_truth_gives_a_zero_loss_with_gradients():
    module = module_of()
    loss = module.training_step(batch_of(depth=0.0), 0)
    loss.backward()
    assert loss == 0
    assert module.model.factor.grad == 0


def test_one_value_for_a_batch_norm_is_explained():
    class Pooled(Brightness):
        def forward(self, image):
            return Output(torch.nn.BatchNorm2d(3)(image[:1, :, :1, :1]))

    with pytest.raises(
        ShapeError, match=r"images of 32x64 in batches of 2 give one: set a larger data.batch_size"
    ):
        module_of(Pooled()).training_step(batch_of(), 0)


def test_a_broken_loss_names_the_images_and_a_way_out():
    module, batch = module_of(), batch_of()
    batch["image"][1, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match=r"nan at step 0, on the images 0, 1.*debug=anomaly"):
        module.training_step(batch, 0)


def test_flip_averaging_follows_the_protocol():
    image = batch_of()["image"]
    model = Brightness(ramp=3.0)
    plain = module_of(model)(image)
    flipped = module_of(model, protocol=protocol_of(flip=True))(image)
    assert torch.equal(plain, model(image).depth)
    assert torch.equal(flipped, flip_average(plain, model(image.flip(-1)).depth.flip(-1)))
    assert not torch.equal(plain, flipped)


def test_image_and_truth_are_cut_to_the_frame_before_anything_else():
    module = module_of(protocol=protocol_of(frame=(32, 64), crop="garg"))
    batch = batch_of(size=(40, 75))
    batch["depth"] = torch.rand(2, 1, 40, 75) * 3 + 0.5
    view, prediction = module.score(batch)
    top, left = 8, 5  # bottom, and int((75 - 64) / 2)
    assert torch.equal(view.image, batch["image"][..., top:, left : left + 64])
    assert torch.equal(view.truth, batch["depth"][..., top:, left : left + 64])
    assert torch.equal(prediction, 2 * view.image[:, :1])
    assert view.sizes == Sizes((40, 75), (32, 64), (32, 64))


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
    module = module_of(protocol=protocol_of(flip=True, **options))
    batch = batch_of(size=(50, 67))
    batch["depth"] = torch.rand(2, 1, 50, 67) * 3 + 0.5
    batch["image"] = torch.full((2, 3, 50, 67), 0.75)
    if options["input"] == "bottom_centre":
        batch = {k: v[..., -36:, :] if k in ("image", "depth") else v for k, v in batch.items()}
    view, prediction = module.score(batch)
    assert module.model.seen == seen
    assert view.sizes.network == seen
    assert torch.equal(view.truth, batch["depth"])
    torch.testing.assert_close(prediction, torch.full_like(batch["depth"], 1.5))


def test_a_frame_that_the_network_cannot_take_is_refused():
    with pytest.raises(ShapeError, match=r"50x67.*protocol.input=pad"):
        module_of().score(batch_of(size=(50, 67)))


def test_validation_is_scored_under_the_protocol_too():
    module = module_of(protocol=protocol_of(frame=(32, 64), crop="garg", flip=True))
    batch = batch_of(size=(40, 75))
    module.validation_step(batch, 0)
    expected = [
        evaluate_image(p, t, module.protocol)["abs_rel"]
        for p, t in zip(module(batch["image"]), batch["depth"][..., 8:, 5:69], strict=True)
    ]
    assert [row["abs_rel"] for row in module.val_metrics.table()] == pytest.approx(expected, rel=1e-12)


def test_an_image_without_truth_cannot_be_scored_and_is_named():
    batch = batch_of()
    del batch["depth"]
    for step in (module_of().validation_step, module_of().test_step):
        with pytest.raises(DataError, match=r"0, 1: no ground truth"):
            step(batch, 0)


def test_the_spec_travels_in_the_checkpoint():
    assert module_of().hparams["spec"] == {"name": "brightness"}
    assert module_of().hparams["protocol"] == "test"


def test_a_module_for_evaluation_says_what_it_lacks():
    module = DepthModule(Brightness(), protocol=protocol_of())
    with pytest.raises(RuntimeError, match="no loss"):
        module.training_step(batch_of(), 0)
    with pytest.raises(RuntimeError, match="no optimiser"):
        module.configure_optimizers()


def test_half_precision_weights_are_refused():
    module = module_of(Encoded(), optim=torch.optim.SGD, schedule=polynomial)
    module.model.bfloat16()
    with pytest.raises(ConfigError, match="use bf16-mixed or 16-mixed"):
        module.configure_optimizers()


def attach(module, trainer):
    """Give a module a fake trainer."""
    module.__class__ = type("Attached", (type(module),), {"trainer": trainer})


@pytest.mark.parametrize("end_factor", [1.0, 0.5])
def test_a_run_without_an_end(end_factor):
    schedule = functools.partial(polynomial, end_factor=end_factor)
    module = module_of(
        Encoded(), optim=lambda model: torch.optim.SGD(model.parameters(), 0.1), schedule=schedule
    )
    attach(module, SimpleNamespace(estimated_stepping_batches=float("inf")))
    if end_factor == 1:
        optimizer = module.configure_optimizers()["optimizer"]
        assert optimizer.param_groups[0]["lr"] == 0.1
    else:
        with pytest.raises(ConfigError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
            module.configure_optimizers()


def test_the_prediction_is_brought_to_a_truth_with_fewer_pixels_than_its_image():
    module, batch = module_of(), batch_of(size=(32, 64))
    across = torch.linspace(0.5, 1, 64).expand(2, 3, 32, 64)
    batch["image"], batch["depth"] = across.clone(), torch.full((2, 1, 8, 16), 2.0)
    view, prediction = module.score(batch)
    assert view.truth.shape == prediction.shape == (2, 1, 8, 16)
    assert view.image.shape == (2, 3, 32, 64)
    assert view.sizes == Sizes((32, 64), (8, 16), (32, 64))
    # a ramp at the centres of the truth's pixels: the mean of the four columns that each covers
    wanted = 2 * across[:, :1].unfold(3, 4, 4).mean(-1)[:, :, ::4]
    torch.testing.assert_close(prediction, wanted)
    module.test_metrics.update(prediction, view)
    row = module.test_metrics.table()[0]
    assert row["pixels"] == 8 * 16
    assert row["abs_rel"] == pytest.approx(
        evaluate_image(wanted[0], batch["depth"][0], protocol_of())["abs_rel"]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"frame": (32, 32)},
            r"frame=32x32\), and does not fit a depth map of 8x16 beside an image of 32x64",
        ),
        ({"crop": "nyu_pixels"}, "crop=nyu_pixels"),
        ({"input": "bottom_centre", "input_size": (32, 64)}, "input=bottom_centre"),
    ],
)
def test_protocols_that_count_pixels_of_the_image_refuse_a_smaller_truth(options, words):
    batch = batch_of(size=(32, 64)) | {"depth": torch.ones(2, 1, 8, 16)}
    with pytest.raises(ShapeError, match=f"protocol 'test' counts in pixels of the image .*{words}"):
        module_of(protocol=protocol_of(**options)).score(batch)


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (16, 8)])
def test_a_truth_that_shows_another_view_is_refused(size):
    batch = batch_of(size=(32, 64)) | {"depth": torch.ones(2, 1, *size)}
    with pytest.raises(ShapeError, match="fewer pixels of the same aspect"):
        module_of().score(batch)


def test_a_crop_in_shares_is_counted_in_the_truths_own_pixels():
    protocol = protocol_of(crop="garg")
    batch = batch_of(size=(320, 640)) | {"depth": torch.full((2, 1, 80, 160), 2.0)}
    module = module_of(protocol=protocol)
    view, prediction = module.score(batch)
    module.test_metrics.update(prediction, view)
    top, bottom, left, right = protocol.crop_box(80, 160)
    assert module.test_metrics.table()[0]["pixels"] == (bottom - top) * (right - left)

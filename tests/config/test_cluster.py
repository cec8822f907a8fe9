"""The processes of a run, from its options and from the variables that launchers set."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf

from sa2depth.config.cluster import (
    Started,
    check_processes,
    device_count,
    environment_plugins,
    is_distributed,
    note_of_independence,
    started,
)
from sa2depth.errors import ConfigError

NAMES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME", "SLURM_NTASKS_PER_NODE", "SLURM_ARRAY_TASK_ID"),
)
ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
ONE_TASK = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train.sh"}


@pytest.fixture
def environment(monkeypatch):
    """Set these variables of launchers, and remove all others."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def put(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def trainer(**options):
    return OmegaConf.create({"trainer": options})


DDP = {"_target_": "lightning.pytorch.strategies.DDPStrategy"}
ONE, TWO = trainer(accelerator="cpu", devices=1), trainer(accelerator="cpu", devices=2, strategy=DDP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        (ELASTIC, Started("torchrun", 1, 2, "WORLD_SIZE")),
        ({**SLURM, **ELASTIC}, Started("torchrun", 1, 2, "WORLD_SIZE")),
        (SLURM, Started("srun", 1, 2, "SLURM_NTASKS")),
        ({**SLURM, "LOCAL_RANK": "0"}, Started("srun", 1, 2, "SLURM_NTASKS")),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, None),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        ({**ONE_TASK, "SLURM_ARRAY_TASK_ID": "7"}, Started("srun", 0, 1, "SLURM_NTASKS")),
        ({**ONE_TASK, "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Started("Lightning", 1, 2, "WORLD_SIZE")),
        (
            {"JSM_NAMESPACE_RANK": "3", "JSM_NAMESPACE_SIZE": "4"},
            Started("jsrun", 3, 4, "JSM_NAMESPACE_SIZE"),
        ),
        ({"OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1"}, None),
        ({"SLURM_NTASKS": "two", "SLURM_PROCID": ""}, Started("srun", 0, 1, "SLURM_NTASKS")),
    ],
)
def test_who_started_this_process(values, expected):
    assert started(values) == expected


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        (1, 1),
        (2, 2),
        ("2", 2),
        ("0,", 1),
        ("0,1,3", 3),
        ([0, 2], 2),
        (-1, 1),
        ("auto", 1),
        (None, 1),
        ("x", 1),
    ],
)
def test_devices_as_people_write_them(devices, count):
    assert device_count(trainer(accelerator="cpu", devices=devices)) == count


@pytest.mark.parametrize(
    ("options", "several"),
    [
        ({"devices": 1}, False), ({"devices": 1, "strategy": "auto"}, False), ({"devices": 2}, True),
        ({"devices": 1, "num_nodes": 2}, True), ({"devices": -1, "strategy": DDP}, True),
    ],
)  # fmt: skip
def test_a_strategy_or_several_devices_make_a_run_of_several_processes(options, several):
    assert is_distributed(trainer(accelerator="cpu", **options)) is several


@pytest.mark.parametrize(
    ("values", "cfg", "plugin"),
    [
        ({}, ONE, False), ({}, TWO, False), (SLURM, ONE, True), (SLURM, TWO, False), (ELASTIC, ONE, True),
        (ELASTIC, TWO, False), (ONE_TASK, ONE, False), (ONE_TASK, TWO, True),
        ({**ONE_TASK, "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, TWO, True),
    ],
)  # fmt: skip
def test_where_lightning_is_told_to_ignore_a_launcher(environment, values, cfg, plugin):
    environment(values)
    added = environment_plugins(cfg, None)
    assert [type(each) for each in added] == ([LightningEnvironment] if plugin else [])


def test_an_environment_that_the_options_name_wins(environment):
    environment({**SLURM, "SLURM_NTASKS_PER_NODE": "2"})
    mine = SLURMEnvironment()
    assert environment_plugins(ONE, [mine]) == [mine]
    assert environment_plugins(ONE, mine) == [mine]


@pytest.mark.parametrize(
    ("values", "cfg", "words"),
    [
        ({**ELASTIC, "WORLD_SIZE": "4"}, TWO, "ask for 2 processes, but torchrun has started 4 (WORLD_SIZE)"),
        ({**SLURM, "SLURM_NTASKS": "3"}, TWO, "ask for 2 processes, but srun has started 3 (SLURM_NTASKS)"),
        (SLURM, TWO, "--ntasks-per-node=2"),
        (
            SLURM,
            trainer(accelerator="cpu", devices=-1, strategy=DDP),
            "trainer.devices=-1 and trainer.num_nodes=1 ask for 1 process, and there is 1 here, but srun",
        ),
        (ONE_TASK, trainer(accelerator="cpu", devices=1, num_nodes=2), "ask for 2 processes, but srun"),
    ],
)
def test_another_number_of_processes_than_the_options_ask_for(environment, values, cfg, words):
    environment(values)
    with pytest.raises(ConfigError) as caught:
        check_processes(cfg)
    assert words in str(caught.value)
    assert note_of_independence(cfg) is None


@pytest.mark.parametrize(
    ("values", "cfg"),
    [
        ({}, TWO), (ELASTIC, TWO), (ELASTIC, ONE), (SLURM, ONE), (ONE_TASK, TWO), (ONE_TASK, ONE),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "2"}, TWO), ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, TWO),
    ],
)  # fmt: skip
def test_what_fits(environment, values, cfg):
    environment(values)
    check_processes(cfg)

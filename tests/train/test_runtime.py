"""The process around the training: environment, threads, locks of dead builds, process group, version, memory."""

import logging
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import deepspeed.utils
import psutil
import pytest
import torch

import m5ds
from m5ds.train import runtime

VARIABLES = ("TORCH_EXTENSIONS_DIR", "TOKENIZERS_PARALLELISM", "TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY")
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """The environment without what the code under test sets; put back afterwards."""
    kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, *LAUNCHED, "DS_ACCELERATOR")}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_defaults_are_set_for_variables_that_the_user_left_alone(environment, monkeypatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/venv")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        runtime.prepare_environment()
    assert {name: environment[name] for name in (*VARIABLES, "DS_ACCELERATOR")} == {
        "TORCH_EXTENSIONS_DIR": "/venv/torch_extensions",
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "GRPC_VERBOSITY": "ERROR",
        "DS_ACCELERATOR": "cpu",
    }
    mine = dict.fromkeys((*VARIABLES, "DS_ACCELERATOR"), "mine")
    environment.update(mine)
    with warnings.catch_warnings():
        runtime.prepare_environment()
    assert {name: environment[name] for name in mine} == mine


def test_a_gpu_is_not_hidden_and_a_system_python_keeps_the_shared_cache(environment, monkeypatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with warnings.catch_warnings():
        runtime.prepare_environment()
    assert "DS_ACCELERATOR" not in environment and "TORCH_EXTENSIONS_DIR" not in environment


@pytest.mark.parametrize(
    ("category", "message", "shown"),
    [
        (FutureWarning, "soon", False),
        (DeprecationWarning, "old", False),
        (UserWarning, "'pin_memory' argument is set", False),
        (UserWarning, "news", True),
    ],
)
def test_only_what_a_user_can_act_on_is_warned_about(environment, category, message, shown) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runtime.prepare_environment()
        warnings.warn(message, category, stacklevel=1)
    assert bool(caught) == shown


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 4, 1), (4, 0, 4)])
def test_a_rank_takes_its_share_of_the_cores(monkeypatch, cores, ranks, threads) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert runtime.default_num_threads(ranks) == threads


@pytest.mark.parametrize(("age", "refused"), [(1799, False), (1801, True)])
def test_a_lock_of_more_than_half_an_hour_is_refused(tmp_path, environment, monkeypatch, age, refused) -> None:
    environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path)
    lock = tmp_path / "py311/cpu_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    now = lock.stat().st_mtime + age
    monkeypatch.setattr(runtime.time, "time", lambda: now)
    if not refused:
        runtime.check_extension_locks()
        return
    with pytest.raises(ValueError, match=rf"^{lock}: .* 0.5 hours ago; .* delete the folder {lock.parent}$"):
        runtime.check_extension_locks()


def test_locks_are_looked_for_in_torchs_own_cache_by_default(tmp_path, environment, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    runtime.check_extension_locks()
    lock = tmp_path / ".cache/torch_extensions/op/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    with pytest.raises(ValueError, match="torch_extensions/op/lock"):
        runtime.check_extension_locks()


@pytest.fixture
def group(environment, monkeypatch):
    """What start_process_group asked of torch and DeepSpeed."""
    asked = SimpleNamespace(init=[], threads=[], device=[], locks=0, gpu=False)

    def locks() -> None:
        asked.locks += 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.gpu)
    monkeypatch.setattr(torch.cuda, "set_device", asked.device.append)
    monkeypatch.setattr(torch, "set_num_threads", asked.threads.append)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: asked.init.append(options))
    monkeypatch.setattr(runtime, "check_extension_locks", locks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    filters = list(deepspeed.utils.logger.filters)
    yield asked
    deepspeed.utils.logger.filters[:] = filters


def test_without_a_launcher_there_is_one_rank_on_a_free_port(group, environment) -> None:
    runtime.start_process_group()
    port = environment.pop("MASTER_PORT")
    assert 1024 <= int(port) <= 65535
    assert {name: environment[name] for name in LAUNCHED if name in environment} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    half_an_hour = timedelta(minutes=30)
    assert group.init == [
        {"dist_backend": "gloo", "timeout": half_an_hour, "auto_mpi_discovery": False, "verbose": False}
    ]
    assert group.threads == [6] and group.device == [] and group.locks == 0
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_a_launched_rank_keeps_its_variables_and_takes_its_gpu(group, environment) -> None:
    launched = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_SIZE": "3", "MASTER_PORT": "29500"}
    environment.update(launched)
    group.gpu = True
    runtime.start_process_group()
    assert {name: environment[name] for name in launched} == launched and "MASTER_ADDR" not in environment
    assert group.init[0]["dist_backend"] == "nccl"
    assert (group.device, group.locks, group.threads) == ([1], 1, [2])
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is True


def test_a_gpu_without_a_launcher_is_the_first_and_a_number_of_threads_is_obeyed(group, environment) -> None:
    group.gpu, environment["OMP_NUM_THREADS"] = True, "3"
    runtime.start_process_group()
    assert group.device == [0] and group.threads == []


def test_a_launcher_that_does_not_say_the_local_ranks_leaves_all_cores(group, environment) -> None:
    environment.update(RANK="0")
    runtime.start_process_group()
    assert group.threads == [6]


def test_a_taken_port_is_named_with_the_next_one(group, environment, monkeypatch) -> None:
    environment.update(RANK="0", MASTER_PORT="29500")

    def fail(**options):
        raise torch.distributed.DistNetworkError(message)

    monkeypatch.setattr(deepspeed, "init_distributed", fail)
    message = "EADDRINUSE: address in use"
    with pytest.raises(ValueError, match=r"port 29500 is taken .* --master_port 29501 "):
        runtime.start_process_group()
    message = "no route to host"
    with pytest.raises(torch.distributed.DistNetworkError, match="no route"):
        runtime.start_process_group()


def test_deepspeeds_line_about_our_dataclasses_is_dropped_and_no_other(group) -> None:
    runtime.start_process_group()
    logger = deepspeed.utils.logger

    def passes(text: str) -> bool:
        return bool(logger.filter(logging.LogRecord("x", logging.WARNING, "f", 1, text, (), None)))

    assert not passes("A module has unknown inputs or outputs type (<class 'Batch'>) and the tensors embedded in it")
    assert passes("loss scale overflow")


def test_ranks_leave_together(monkeypatch) -> None:
    done = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroy"))
    runtime.end_process_group()
    assert done == ["barrier", "destroy"]


def test_the_version_names_the_commit_of_a_checkout(monkeypatch) -> None:
    asked = []

    def run(command, **options):
        asked.append((command, options))
        return SimpleNamespace(stdout="c0ffee-dirty\n")

    monkeypatch.setattr(runtime.subprocess, "run", run)
    assert runtime.code_version() == f"{m5ds.__version__}+c0ffee-dirty"
    ((command, options),) = asked
    assert command[:3] == ["git", "-C", str(Path(m5ds.__file__).resolve().parents[1])]
    assert options["check"] and options["capture_output"] and options["text"] and options["timeout"] == 10


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(1, "git"), subprocess.TimeoutExpired("git", 1)]
)
def test_without_git_the_version_is_the_packages(monkeypatch, error) -> None:
    def run(*_, **__):
        raise error

    monkeypatch.setattr(runtime.subprocess, "run", run)
    assert runtime.code_version() == m5ds.__version__


def test_memory_is_this_processs_and_that_of_the_launchers_right_above_it(monkeypatch) -> None:
    lines = {11: "python\0-m\0deepspeed.launcher.launch", 12: "/bin/deepspeed\0x", 13: "bash", 14: "deepspeed"}
    resident = {os.getpid(): 7, 11: 100, 12: 20, 13: 4000, 14: 50000}
    monkeypatch.setattr(runtime, "_command_line", lambda pid: lines[pid].split("\0"))
    monkeypatch.setattr(runtime, "_peak_resident", resident.__getitem__)
    parents = [SimpleNamespace(pid=pid) for pid in lines]
    monkeypatch.setattr(psutil.Process, "parents", lambda self: parents)
    assert runtime.peak_memory() == {"rank": 7, "launchers": 120}
    parents[:] = parents[2:]
    assert runtime.peak_memory() == {"rank": 7, "launchers": 0}


def test_the_peak_is_the_kernels_high_water_mark_in_bytes(monkeypatch) -> None:
    texts = {
        "/proc/5/status": "Name:\tx\nVmPeak:\t 99 kB\nVmHWM:\t  12 kB\nVmRSS:\t 7 kB\n",
        "/proc/6/status": "Name:\tk\n",
    }

    def read_text(path):
        if str(path) not in texts:
            raise FileNotFoundError(path)
        return texts[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert [runtime._peak_resident(pid) for pid in (5, 6, 7)] == [12 * 1024, 0, 0]
    texts["/proc/5/cmdline"] = "python\0-u\0x.py"
    assert [runtime._command_line(pid) for pid in (5, 6)] == [["python", "-u", "x.py"], []]


def test_a_free_port_can_be_bound() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", runtime._free_port()))

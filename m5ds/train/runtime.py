"""The process around the training: environment, devices, process group, memory, code version.

`prepare_environment` must run before DeepSpeed is imported, so nothing here imports it at the top.
"""

import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import m5ds

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STALE_LOCK_SECONDS = 1800
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def prepare_environment() -> None:
    """Defaults for variables that the user left alone, and quiet for what our dependencies print on every rank."""
    if sys.prefix != sys.base_prefix:
        # Two virtual environments that share the default cache rebuild each other's operators every time.
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def default_num_threads(num_local_ranks: int) -> int:
    """Threads of one rank's CPU operators: its share of the cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, num_local_ranks))


def check_extension_locks() -> None:
    """Refuse to start behind the lock of a build that was killed: every rank would wait on it for ever, silently.

    Raises ValueError that names the lock. Only where DeepSpeed builds operators, that is with a GPU.
    """
    directory = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    for lock in directory.glob("**/lock"):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_LOCK_SECONDS:
            raise ValueError(
                f"{lock}: left by a build that was killed {age / 3600:.1f} hours ago; DeepSpeed would wait on it for"
                f" ever: delete the folder {lock.parent}"
            )


def start_process_group() -> None:
    """DeepSpeed's process group: nccl with GPUs, gloo without; one rank when no launcher started this process."""
    import torch

    on_cpu = not torch.cuda.is_available()
    import deepspeed
    from deepspeed.utils import logger

    logger.addFilter(_is_news)
    if on_cpu:
        # Its C++ build would take a minute, and two ranks are as fast without it (FINDINGS, "DeepSpeed on CPU").
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        check_extension_locks()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(default_num_threads(int(os.environ.get("LOCAL_SIZE", "1"))))
    try:
        deepspeed.init_distributed(
            dist_backend="gloo" if on_cpu else "nccl",
            timeout=COLLECTIVE_TIMEOUT,
            auto_mpi_discovery=False,
            verbose=False,
        )
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise ValueError(
            f"port {port} is taken by another run on this machine; start this one with another: deepspeed --master_port"
            f" {int(port) + 1} ..."
        ) from error


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what DeepSpeed says of every model that returns a dataclass.

    It cannot see tensors in our batch, layout and output, so it does not hook the modules that pass them on. Those own
    no parameters or take a tensor beside; tests/dist/test_gradients.py compares every gradient with plain torch.
    """
    return not record.getMessage().startswith("A module has unknown inputs or outputs type")


def end_process_group() -> None:
    """Leave together, so that no rank reports the others' connections as lost."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def code_version() -> str:
    """The package's version and, in a git checkout, the commit and whether the tree differs from it."""
    try:
        git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return m5ds.__version__
    return f"{m5ds.__version__}+{commit}"


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process (`rank`) and, summed over peaks, of its launchers (`launchers`)."""
    import psutil

    launchers = 0
    for parent in psutil.Process().parents():
        if "deepspeed" not in " ".join(_command_line(parent.pid)):
            break
        launchers += _peak_resident(parent.pid)
    return {"rank": _peak_resident(os.getpid()), "launchers": launchers}


def _peak_resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(fields[0][1]) * 1024 if fields else 0


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []

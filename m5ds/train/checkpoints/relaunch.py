"""The command that goes on with a run, to be pasted into a shell: the launcher that started it, with its own flags.

The launcher's command line is read from /proc while it lives: a stop often begins with its death. It holds what the
ranks cannot know (`--num_gpus`, `--include`, `--hostfile`, a port).
"""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

import psutil

from m5ds.config import TrainConfig

CONSOLE = ("deepspeed", "ds", "torchrun", "accelerate", "accelerate-launch")
MODULES = (
    "deepspeed.launcher.runner",
    "torch.distributed.run",
    "accelerate.commands.launch",
)


class Relaunch:
    """Made when the process starts; `command` may be asked for when everything above it is gone."""

    def __init__(self) -> None:
        self.directory = Path.cwd()
        self.script = Path(os.path.abspath(sys.argv[0]))  # noqa: PTH100  links stay what the user typed
        # Without a launcher start_process_group gives the one rank its number.
        self._launcher = self._found() or ([sys.executable] if "RANK" not in os.environ else None)

    def _found(self) -> list[str] | None:
        """Of the launchers above this process the outermost, which the user typed: its words before our script."""
        for process in reversed(psutil.Process().parents()):
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            before = self._before_script(words)
            if before and is_launcher(before):
                return before
        return None

    def _before_script(self, words: list[str]) -> list[str] | None:
        for place, word in enumerate(words):
            if place and Path(os.path.abspath(self.directory / word)) == self.script:  # noqa: PTH100
                before = words[:place]
                program = before[0]
                if not Path(program).name.startswith("python"):
                    # A wrapper's command line may hold its bare name, which only PATH can place.
                    return [program if os.sep in program else shutil.which(program) or program, *before[1:]]
                # A console script is run as `python /path/of/it`; `python` itself may be another one in the next shell.
                if place > 1 and not before[1].startswith("-"):
                    return [str(self.directory / before[1]), *before[2:]]
                return [sys.executable, *before[1:]] if place > 1 else None
        return None

    def command(self, arguments: list[str], num_ranks: int) -> str:
        """One line for a shell in any folder. `arguments` are the script's own; `num_ranks` the ranks of this run.

        Where the launcher is unknown (Slurm's, or another machine's), DeepSpeed's stands in for it.
        """
        launcher = self._launcher or [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(num_ranks)]
        first = self._short(Path(launcher[0])) if os.sep in launcher[0] else launcher[0]
        words = [first, *launcher[1:], self._short(self.script), *arguments]
        return f"cd {shlex.quote(str(self.directory))} && {shlex.join(words)}"

    def _short(self, path: Path) -> str:
        """Relative below the working directory. Never a bare name: the pasting shell may have another PATH."""
        path = self.directory / path
        if not path.is_relative_to(self.directory):
            return str(path)
        relative = path.relative_to(self.directory)
        return str(relative) if len(relative.parts) > 1 else f"./{relative}"


def is_launcher(words: list[str]) -> bool:
    """Whether these words before a script's name start ranks: a known console script, or `python -m` its module."""
    if Path(words[0]).name in CONSOLE:
        return True
    return any(flag == "-m" and module in MODULES for flag, module in zip(words, words[1:], strict=False))


def resuming(arguments: argparse.Namespace, directory: Path) -> list[str]:
    """The flags that pretraining and finetuning share, for going on with the run in `directory`."""
    flags = ["--ds_config", arguments.ds_config, "--config", arguments.config, "--resume", str(directory)]
    return [*flags, "--traceback"] if arguments.traceback else flags


def doubled(overrides: list[str], train: TrainConfig, total_steps: int) -> list[str]:
    """The overrides of a run twice as long, which is given in epochs where the run's length is."""
    key, value = ("epochs", 2 * train.epochs) if train.epochs else ("total_steps", 2 * total_steps)
    return [*(item for item in overrides if not item.startswith(f"train.{key}=")), f"train.{key}={value}"]

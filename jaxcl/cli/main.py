"""The command `jaxcl`: from words to a job, and the job in a process that ends as it should.

`jaxcl compare` trains several methods on one sequence of tasks, `jaxcl sweep` one method with many
settings. Bad input ends in one sentence and exit code 2, before a file is written. What follows is
in `compare` and `sweep`.
"""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax

import jaxcl
from jaxcl.cli import compare, processes, sweep
from jaxcl.cli.options import Compare, Run, Sweep, parse
from jaxcl.study.replicas import Device


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: the words after `jaxcl`; by default those of this process.

    Raises:
        SystemExit: with code 2 for bad input, with 130 if the user interrupts.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"jaxcl {jaxcl.__version__}")
        return
    try:
        for module in ("tyro", "rich", "matplotlib"):
            _need(module)
        command = parse(args)
        processes.check(command.run)
        logging.getLogger("absl").setLevel(logging.ERROR)
        cache = use_cache(command.run.cache)
        processes.join(command.run)
    except (ValueError, ImportError, OSError) as error:
        _fail(error)
    resumed = "; the same command with --resume goes on" if type(command) is Compare else ""
    with processes.leaving_at_once(resumed):
        try:
            devices = use_devices(command.run)
            prepare = {Compare: compare.prepare, Sweep: sweep.prepare}[type(command)]
            job = prepare(command, devices, cache)
        except (ValueError, ImportError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail("stopped before anything was trained.", code=130)
        try:
            job()
        except KeyboardInterrupt:
            _fail(f"stopped{resumed}.", code=130)
        except MemoryError as error:
            _fail(error)


def use_cache(wanted: bool) -> Path | None:
    """Turns JAX's persistent compilation cache on or off; its folder."""
    jax.config.update("jax_enable_compilation_cache", wanted)
    if not wanted:
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = (
        jax.config.values["jax_compilation_cache_dir"] or Path(cache).expanduser() / "jaxcl" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(folder)


def use_devices(run: Run) -> list[Device]:
    """The devices to run on, of all processes. On a CPU JAX is told to show each core as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if run.devices or "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # if a backend runs, its devices are what they are
            jax.config.update("jax_num_cpu_devices", run.devices or cores or 1)
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise ValueError(f"no device can be used: {error}") from error
    groups = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    least, most = min(map(len, groups)), max(map(len, groups))
    if least < most:  # as all processes see
        jax.distributed.shutdown()
        raise ValueError(
            f"every process has to bring as many devices, but one has {least} and another {most}; "
            f"choose --devices {least} for all."
        )
    with processes.agreement():
        if (run.devices or 1) > least:
            kind = devices[0].platform
            raise ValueError(f"--devices is {run.devices}, but there are {least} ({kind}).")
    return [device for group in groups for device in group[: run.devices]]


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"the command needs {module}, which comes with the extra 'experiments': "
            f'pip install "jaxcl[experiments]"'
        )


def _fail(reason: Exception | str, code: int = 2) -> NoReturn:
    if isinstance(reason, OSError) and reason.filename:
        reason = f"{reason.filename}: {reason.strerror}"
    print(f"jaxcl: {' '.join(str(reason).split())}", file=sys.stderr)
    raise SystemExit(code)

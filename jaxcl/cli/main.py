"""The command `jaxcl`: from words to a job, and the job in a process that ends as it should.

`parsing.COMMANDS` lists what it can do, and a module of each name does it. Bad input ends in one
sentence and exit code 2, before a file is written; so does what the machine refuses, such as a full
disk. A result that is none ends with code 1, an interruption with 130 and SIGTERM with 143.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jaxcl
from jaxcl.cli import signals
from jaxcl.cli.streams import flush, standard_output

if TYPE_CHECKING:
    from jaxcl.cli.options import Run

# All else is imported where it is used: it takes seconds, in which the user may interrupt, and a
# package may be missing.

REFUSED = (ValueError, ImportError, OSError)
RESUMED = "; the same command with --resume goes on"
BROKEN_PIPE = 141  # as the shell counts a process that SIGPIPE ends


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: the words after `jaxcl`; by default those of this process.

    Raises:
        SystemExit: with code 2 for bad input and what the machine refuses, with 1 if nothing has a
            finite result, with 130 if the user interrupts and 143 after SIGTERM.
    """
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # shows any text, whatever the encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals.handled(signals.leave):
            _import()
        with signals.handled(signals.interrupt):
            _run(args)
    except KeyboardInterrupt as error:
        _fail(signals.STOPPED, code=getattr(error, "code", 130))
    finally:
        try:
            flush()
        except OSError as error:
            _fail(error)


def _import() -> None:
    """Imports what takes seconds, in which the user may interrupt."""
    import jax  # noqa: F401


def _run(args: list[str]) -> None:
    try:
        if args == ["--version"]:
            with standard_output():
                print(f"jaxcl {jaxcl.__version__}")
            return
        for module in ("tyro", "rich", "matplotlib"):
            _need(module)
        os.environ["MPLBACKEND"] = "agg"  # nothing is drawn on a screen, whatever is asked for
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
        warnings.formatwarning = _line
        from jaxcl.cli import parsing, processes

        if args and args[0] in set(parsing.COMMANDS) - set(parsing.TRAINING):
            importlib.import_module(f"jaxcl.cli.{args[0]}").run(args[1:])
            return
        with standard_output():  # which may be asked to show the help
            command = parsing.parse(args)
        processes.check(command.run)
        cache = use_cache(command.run.cache)
        processes.join(command.run)
    except REFUSED as error:
        _fail(error)
    with processes.leaving_at_once(RESUMED), contextlib.ExitStack() as held:
        _train(command, cache, held)


def _train(command: Any, cache: str, held: contextlib.ExitStack) -> None:
    """Prepares and does the job of a command that trains."""
    import jax

    from jaxcl.cli import processes
    from jaxcl.cli.options import Compare
    from jaxcl.cli.running import Refused
    from jaxcl.study.comparison import Stopped

    name = type(command).__name__.lower()
    if isinstance(command, Compare):
        name = "dry" if command.dry_run else "tune" if command.tune else name
    does = importlib.import_module(f"jaxcl.cli.{name}")
    try:
        absent = name == "dry" and command.topology
        devices = does.devices_of(command) if absent else use_devices(command.run)
        job = does.prepare(command, devices, cache, held)
    except REFUSED as error:
        _fail(error)
    except KeyboardInterrupt as error:
        _fail(signals.STOPPED, code=getattr(error, "code", 130))
    noted = signals.Noted()
    try:
        ahead = ["orbax.checkpoint"] + ["jaxcl.report.figures"] * processes.is_main()
        threading.Thread(target=_load, args=ahead, daemon=True).start()
        with signals.handled(noted.handle):
            job(noted.asked)
    except KeyboardInterrupt:
        _fail(f"stopped{RESUMED}.", code=130)
    except Stopped:
        processes.take_leave()
        number = noted.number or signal.SIGTERM  # another process was asked
        _fail(f"stopped, and all is saved{RESUMED}.", code=signals.code_of(number))
    except Refused as error:
        _fail(str(error))
    except FloatingPointError as error:
        _fail(error, code=1)
    except MemoryError as error:
        _fail(error)
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        _fail(f"a device is out of memory: {str(error).splitlines()[0]}")
    except OSError as error:
        _fail(error, hint=RESUMED)


def _load(*modules: str) -> None:
    """Imports what is needed later, while the devices compute."""
    with contextlib.suppress(ImportError):  # which is said where it is needed
        for module in modules:
            importlib.import_module(module)


def use_cache(wanted: bool) -> str:
    """Turns JAX's persistent compilation cache on or off; what to say of it."""
    import jax

    jax.config.update("jax_enable_compilation_cache", wanted)
    if not wanted:
        return ""
    given = jax.config.values["jax_compilation_cache_dir"]
    try:
        folder = given or _own_cache()
        if "://" not in str(folder):
            # Private: whoever can write there can have this process run a program of his.
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        jax.config.update("jax_enable_compilation_cache", False)
        return f"Compiled programs are not kept: {_words(error)}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return f"Compiled programs are kept in {folder}; --no-cache turns that off"


def _own_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxcl" / "xla"


def use_devices(run: "Run") -> list[Any]:
    """The devices to run on, of all processes. On a CPU JAX is told to show each core as one."""
    import jax

    from jaxcl.cli import processes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if run.devices or "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # if a backend runs, its devices are what they are
            jax.config.update("jax_num_cpu_devices", run.devices or cores or 1)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a platform has no device
        asked = jax.config.values["jax_platforms"]
        of = f" of the platform {asked!r} (JAX_PLATFORMS)" if asked else ""
        said = f": {error}" if str(error) else "."
        raise ValueError(f"no device{of} can be used{said}") from error
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
    from jaxcl.core.checks import install

    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"the command needs {module}, which comes with the extra 'experiments': "
            f"{install('experiments')}"
        )


def _line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the place in the source."""
    return f"warning: {_words(str(message))}\n"


def _fail(reason: Exception | str, code: int = 2, hint: str = "") -> NoReturn:
    if isinstance(reason, BrokenPipeError):
        raise SystemExit(BROKEN_PIPE)  # who reads has seen enough
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"jaxcl: {_words(reason)}{hint}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _words(reason: Exception | str) -> str:
    """What is wrong, on one line."""
    if isinstance(reason, OSError) and reason.filename:
        reason = f"{reason.filename}: {reason.strerror}"
    elif isinstance(reason, OSError):
        reason = reason.strerror or str(reason)
    return " ".join(str(reason).split())

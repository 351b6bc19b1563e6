"""Several processes that run one command: how they meet, agree, and leave the writing to one."""

import contextlib
import os
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils

if TYPE_CHECKING:
    from jaxcl.cli.options import Run

TEXT_BYTES = 1 << 16  # what processes tell each other is cut to this length


def check(run: "Run") -> None:
    """Raises ValueError for options of which one process can see that they are wrong."""
    if run.coordinator is run.processes is run.process is None:
        return
    if run.coordinator is None or run.processes is None or run.process is None:
        raise ValueError("--coordinator, --processes and --process go together: give all three.")
    host, _, port = run.coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, got {run.coordinator!r}."
        )
    last = run.processes - 1
    if run.process > last:
        raise ValueError(f"--process must be 0 to {last} (--processes), got {run.process}.")


def join(run: "Run") -> None:
    """Meets the other processes, before any device is touched.

    JAX aborts the process when its time is up. A clock that ends before says why, and ends it with
    code 2.

    Raises:
        ValueError: if there is no cluster, or process 0 cannot listen at its port.
    """
    if not (run.distributed or run.coordinator):
        return
    if run.coordinator and run.process == 0:
        try:
            _listen(run.coordinator)
        except OSError as error:
            raise ValueError(f"process 0 cannot listen at {run.coordinator}: {error}") from error
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    clock = threading.Timer(run.timeout, _give_up, (run,))
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(
            run.coordinator, run.processes, run.process,
            initialization_timeout=run.timeout + 60,
            coordinator_bind_address=run.coordinator,  # JAX would listen to any network
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"JAX finds no cluster here (TPU, Slurm, Open MPI, GKE): {error} Give --coordinator "
            f"HOST:PORT --processes N --process I instead of --distributed."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"this process cannot join the others: {error}") from error
    finally:
        clock.cancel()
    _silence_stdout_of_other_languages()


def _listen(address: str) -> None:
    """Raises OSError if this machine has no such address, or something listens there."""
    host, _, port = address.rpartition(":")
    family, *_, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    socket.create_server(where, family=family).close()


def _give_up(run: "Run") -> None:
    """Says in one sentence why the processes have not met, and ends this one."""
    limit = f"within {run.timeout} s (--timeout)"
    if not run.coordinator:
        reason = f"the processes of this cluster did not meet {limit}."
    elif run.process == 0 or _answers(run.coordinator):
        reason = f"not all {run.processes} processes came to {run.coordinator} {limit}."
    else:
        reason = f"the coordinator, process 0 at {run.coordinator}, did not answer {limit}."
    print(f"jaxcl: {reason}", file=sys.stderr, flush=True)
    os._exit(2)  # the main thread is inside of JAX, which does not return


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        return True
    return False


def _silence_stdout_of_other_languages() -> None:
    """Keeps Gloo, which JAX uses between CPUs, from writing into the command's output."""
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def several() -> bool:
    """Whether other processes have been met."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the one process that writes to files and to the terminal."""
    return not several() or jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; every process has to call this.

    Raises:
        RuntimeError: if one of them is gone.
    """
    if not several():
        return [text]
    row = np.frombuffer(text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0"), np.uint8)
    try:
        rows = multihost_utils.process_allgather(row)
    except ValueError as error:  # as JAX reports what Gloo says
        raise RuntimeError(str(error)) from error
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """What is wrong in one process is raised in all of them, once they have taken leave."""
    found = None
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        found = error
    texts = gather("" if found is None else str(found) or repr(found))
    if any(texts) and several():
        jax.distributed.shutdown()  # waits for all
    if found:
        raise found
    for process, text in enumerate(texts):
        if text:
            raise ValueError(f"process {process} says: {text}")


def take_leave() -> None:
    """Waits for the others, so that no one ends while another still needs it."""
    if several():
        jax.distributed.shutdown()


@contextlib.contextmanager
def leaving_at_once(hint: str) -> Iterator[None]:
    """Ends this process without waiting for the others where it fails and they may not.

    They notice that it is gone; if it waited for them, as JAX does at exit, each would wait for
    the other.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            if "Gloo" not in str(error):  # else it is another process that failed
                traceback.print_exc()
            print(f"jaxcl: stopped, as one of the processes failed{hint}.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def check_same(folder: Path, settings: dict) -> None:
    """Raises ValueError in all processes unless they do the same, in a folder that they share."""
    if not several():
        return
    mine = {"out": str(folder.absolute()), **settings}
    lines = gather("\n".join(f"{name} is {value!r}" for name, value in mine.items()))
    with agreement():
        for process, text in enumerate(lines):
            for first, other in zip(lines[0].splitlines(), text.splitlines()):
                if first != other:
                    raise ValueError(
                        f"the processes have different options: {first} in process 0, but {other} "
                        f"in process {process}."
                    )
    folders = (folder.absolute(), *folder.absolute().parents)
    there, probe = next(path for path in folders if path.is_dir()), None
    with agreement():
        if is_main():
            probe = tempfile.NamedTemporaryFile(prefix=".jaxcl_", dir=there)  # noqa: SIM115
    name = gather(probe.name if probe else "")[0]
    seen = gather("yes" if Path(name).exists() else "no")
    if probe:
        probe.close()
    with agreement():
        if "no" in seen:
            raise ValueError(
                f"process {seen.index('no')} does not see what process 0 writes in {there}; --out "
                f"must be a folder that all processes share."
            )

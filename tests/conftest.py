"""All tests run on four forced CPU devices, with JAX's strictest checks on.

What one test compiles, the others find: all workers of a run share a folder of compiled programs.
They are compiled in a fifth of the time, and run slower for it, as no test trains for long;
`JAXCL_TESTS=optimized` compiles them as a user's are.
"""

import gc
import os
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if os.environ.get("JAXCL_TESTS") != "optimized":
    FAST = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    FAST += ["--xla_cpu_parallel_codegen_split_count=1"]
    if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
        FAST.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST])

import jax
import pytest

# A shell starts what runs in its background deaf to Ctrl-C, and whatever that starts as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Traced programs are many objects that stay, and are not looked through as often.
gc.set_threshold(100_000, 20, 20)

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
PROGRAMS = Path(tempfile.gettempdir()) / f"jaxcl-tests-{RUN}" / "xla"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command in this process: its devices, and one cache of programs for all workers."""
    jax.devices()  # from here on the command takes them as they are
    before = jax.config.values["jax_compilation_cache_dir"]
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_enable_compilation_cache", True)


def pytest_sessionfinish(session):
    """The run's own process, not a worker's, takes the folder away."""
    if not hasattr(session.config, "workerinput"):
        for folder in Path(tempfile.gettempdir()).glob(f"jaxcl-tests-{RUN}*"):
            shutil.rmtree(folder, ignore_errors=True)

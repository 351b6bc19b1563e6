"""The command in the process of the tests."""

import os

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _devices_and_cache(tmp_path_factory):
    """The devices of the tests, and one cache of programs for all of them and their workers."""
    jax.devices()  # from here on the command takes them as they are
    before = jax.config.values["jax_compilation_cache_dir"]
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_enable_compilation_cache", True)

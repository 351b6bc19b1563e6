"""A file system that takes no more, for real: nothing half written stays, and nothing good goes."""

import errno
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.study import checkpoint
from jaxcl.study.archive import Saver

SMALL, LARGE = {"x": jnp.arange(9.0)}, {"x": np.random.default_rng(0).normal(size=100_000)}


def saved(saver, name, tree):
    saver.save(name, tree)
    saver.wait()


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # orbax's, when it fails
def test_no_checkpoint_is_half_there_when_files_can_grow_no_more(tmp_path):
    """The system's limit on the size of a file stops the writing, as a full disk does."""
    saver = Saver(tmp_path, {})
    saved(saver, "task_1", SMALL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            saved(saver, "task_2", LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(tmp_path / "task_2")
    assert [path.name for path in tmp_path.iterdir()] == ["task_1"]
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / "task_1", SMALL)["x"], SMALL["x"])
    saved(saver, "task_2", LARGE)
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / "task_2", LARGE)["x"], LARGE["x"])

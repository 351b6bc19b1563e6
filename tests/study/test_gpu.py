"""What the GPU compiler makes of a study's programs, on a machine without a GPU; where it is."""

import json
import subprocess
import sys

import pytest

# The platform is chosen once in a process.
SCRIPT = """
import json
import jax
jax.config.update("jax_platforms", "cpu")
from jaxcl import data, recipes
from jaxcl.study import compiled, lowering, topology

(study,) = recipes.studies(
    "finetune", data.permuted_digits(2), recipes.Options(hidden=(32, 32), optimizer="sgd"), [0],
    devices=topology.h100(),
)
(program,) = lowering.lower(study, ["epoch"]).values()
print(json.dumps(compiled.kernels(program.compile().as_text())))
"""


def test_a_step_of_fine_tuning_is_few_kernels_on_a_gpu():
    pytest.importorskip("jax_cuda13_plugin")
    end = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr[-2000:]
    found = json.loads(end.stdout.splitlines()[-1])
    assert found.pop("product") == 8  # three layers, the first of which passes no gradient on
    assert sum(found.values()) <= 11

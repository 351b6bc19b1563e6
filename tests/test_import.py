"""Law 7: importing jaxcl loads jax and optax, and changes and starts nothing."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("flax", "orbax", "chex", "rich", "tyro", "matplotlib", "sklearn", "pandas", "grain"),
    *(
        "tensorflow",
        "tensorflow_datasets",
        "torch",
        "PIL",
        "array_record",
        "importlib_resources",
        "vl_convert",
    ),
}


def python(script: str):
    """What a fresh interpreter prints as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def imported():
    """A fresh interpreter before and after `import jaxcl`."""
    return python(
        """
import json, os, sys
import jax, optax
from jax._src import xla_bridge

def flags():
    return {name: repr(value) for name, value in jax.config.values.items()}

modules, before, environment = set(sys.modules), flags(), dict(os.environ)
import jaxcl
print(json.dumps({
    "modules": sorted(set(sys.modules) - modules),
    "flags": sorted(name for name, value in flags().items() if before.get(name) != value),
    "environment": environment == dict(os.environ),
    "backends": sorted(xla_bridge._backends),
}))
"""
    )


def test_loads_nothing_heavier_than_jax_and_optax(imported):
    """So no other distribution at all: what optax and jax have loaded is not counted."""
    packages = {name.split(".")[0] for name in imported["modules"]}
    assert packages - set(sys.stdlib_module_names) <= {"jaxcl", "jax"}
    assert not packages & HEAVY


def test_sets_no_flag(imported):
    assert imported["flags"] == []
    assert imported["environment"]


def test_starts_no_computation(imported):
    assert imported["backends"] == []


def test_every_name_resolves_and_starts_nothing_either():
    found = python(
        """
import json, sys, types
import jax
from jax._src import xla_bridge
import jaxcl

lazy = sorted(set(jaxcl.__all__) - set(vars(jaxcl)))
kinds = {name: isinstance(getattr(jaxcl, name), types.ModuleType) for name in jaxcl.__all__}
names = {}
exec("from jaxcl import *", names)
print(json.dumps({
    "lazy": lazy, "kinds": kinds, "backends": sorted(xla_bridge._backends),
    "starred": sorted(set(jaxcl.__all__) - set(names)), "dir": dir(jaxcl),
    "version": jaxcl.__version__,
}))
"""
    )
    assert found["lazy"] == sorted(found["kinds"])
    modules = {name for name, is_module in found["kinds"].items() if is_module}
    assert {"data", "models", "report", "study", "train"} <= modules
    assert found["starred"] == []
    assert found["dir"] == sorted(found["kinds"])
    assert found["backends"] == []
    assert found["version"]


def test_flax_is_loaded_when_it_is_used():
    """The broken twin: the first test would see what it looks for."""
    found = python(
        """
import json, sys, jaxcl
jaxcl.models
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    )
    assert HEAVY & set(found) >= {"flax"}


def test_an_unknown_name_is_an_error():
    import jaxcl

    with pytest.raises(AttributeError, match="module 'jaxcl' has no attribute 'nothing'"):
        jaxcl.nothing  # noqa: B018

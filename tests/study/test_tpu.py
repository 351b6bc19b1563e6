"""What libtpu makes of a study's programs, on a machine without a TPU; where it is installed."""

import importlib.util
import json
import subprocess
import sys

import pytest

from jaxcl.study import topology

# libtpu is loaded once in a process, with an environment of its own.
SCRIPT = """
import json
import jax
jax.config.update("jax_platforms", "cpu")
from jaxcl import data, recipes
from jaxcl.study import compiled, lowering, memory, topology

benchmark = data.permuted_digits(2)
devices, found = topology.tpu("v5e:2x2"), {}
for name in topology.CHIPS:
    kind = topology.tpu(f"{name}:{topology.CHIPS[name]}")[0].device_kind
    assert kind in topology.MEMORY, kind
for split, seeds in ((1, 8), (4, 1)):
    (study,) = recipes.studies(
        "packnet", benchmark, recipes.Options(hidden=(8,)), range(seeds), devices=devices,
        devices_per_replica=split,
    )
    names = lowering.PROGRAMS if split == 1 else ["epoch"]
    for name, program in lowering.lower(study, names).items():
        program = program.compile()
        text, used = program.as_text(), compiled.bytes_of(program)
        found[f"{name}/{split}"] = [dict(compiled.collectives(text)), used.total]
try:
    topology.tpu("v9:2x2")
except ValueError as error:
    found["refused"] = str(error)
found["limit"] = memory.limit_bytes(study.layout)
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_programs_of_a_study_compile_for_a_tpu():
    end = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr[-2000:]
    found = json.loads(end.stdout.splitlines()[-1])
    for name in ("start", "begin_task", "epoch", "end", "evaluate"):
        exchanged, used = found[f"{name}/1"]
        assert exchanged == {}, name  # nothing crosses between cores while replicas train
        assert 0 < used < found["limit"] == 16 << 30
    exchanged, _ = found["epoch/4"]
    assert exchanged and set(exchanged) <= {"all-reduce", "all-gather"}  # sums over a batch
    assert "knows no topology 'v9:2x2'" in found["refused"] and "v5e:2x2" in found["refused"]


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'takes libtpu: pip install "jaxcl\[tpu\]"'):
        topology.tpu("v5e:2x2")
    with pytest.raises(ImportError, match="pip install --no-deps jax-cuda13-plugin=="):
        topology.h100()

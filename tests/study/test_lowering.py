"""Programs lowered from shapes are those of a run, and what is read in their text is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import data, recipes, study
from jaxcl.study import compiled, lowering


@pytest.mark.parametrize("method", ["finetune", "er"])
def test_a_run_calls_its_programs_with_what_they_are_lowered_from(method):
    benchmark = data.permuted_digits(2)
    options = recipes.Options(hidden=(4,), epochs=1)
    (built,) = recipes.studies(method, benchmark, options, [0, 1], devices=jax.devices()[:2])
    lowered, seen = lowering._arguments(built), {}

    def noting(name, program):
        def run(*args):
            seen.setdefault(name, jax.tree.map(lambda a: (jnp.shape(a), a.dtype), args))
            return program(*args)

        return run

    programs = {name: noting(name, program) for name, program in built.programs.items()}
    programs["epoch_0"] = noting("epoch", built.programs["epoch"])
    programs["start"] = noting("start", built.programs["start"])
    list(study.run(built._replace(programs=programs)))
    for name in lowering.PROGRAMS:
        expected = jax.tree.map(lambda a: (a.shape, a.dtype), lowered[name])
        assert jax.tree.map(str, seen[name]) == jax.tree.map(str, expected), name


def test_the_text_of_a_program_gives_its_loop_and_its_exchanges():
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("x")

    def run(rows, weights):
        def step(i, w):
            return jnp.tanh(rows[i] @ w)

        return jax.lax.psum(jax.lax.fori_loop(0, 3, step, weights).sum(), "x")

    mapped = jax.shard_map(
        run, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()),
        out_specs=jax.sharding.PartitionSpec(), check_vma=False,
    )  # fmt: skip
    weights = np.ones((64, 64), np.float32)
    program = jax.jit(mapped).lower(np.ones((200, 64, 64), np.float32), weights).compile()
    text = program.as_text()
    assert compiled.collectives(text) == {"all-reduce": 1}
    loop = compiled.kinds(compiled.training_loop(text))
    assert loop and "parameter" not in loop and "all-reduce" not in loop
    # A row of 200, the weights and the result, some of them more than once; not all rows.
    assert 3 * weights.nbytes <= compiled.step_bytes(text) <= 8 * weights.nbytes
    assert compiled.bytes_of(program).arguments >= 100 * weights.nbytes

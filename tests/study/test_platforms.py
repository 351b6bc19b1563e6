"""What runs here on a CPU is lowered for GPUs and TPUs too, where none is at hand to run it."""

import jax
import pytest

from jaxcl import data, recipes, study

PLATFORMS = ("cuda", "tpu")


@pytest.mark.parametrize("method", ["packnet", "hat", "pnn"])
def test_every_program_of_a_study_lowers_for_accelerators(method):
    benchmark = data.permuted_digits(2)
    options = recipes.Options(hidden=(4,), precision="bfloat16", optimizer="adam")
    built = study.build(
        recipes.recipe(method, benchmark, options), benchmark, [0, 1], epochs=1, retrain_epochs=1,
        devices=jax.devices()[:1],
    )  # fmt: skip
    retraining = next(i for i, phase in enumerate(built.phases) if phase.closed)
    lowered = set()

    def lowering(name, program):
        def run(*args):
            program.trace(*args).lower(lowering_platforms=PLATFORMS)
            lowered.add(name)
            return program(*args)

        return run

    programs = {name: lowering(name, program) for name, program in built.programs.items()}
    list(study.run(built._replace(programs=programs)))
    used = {"start", "begin_task", "epoch_0", f"epoch_{retraining}", "end", "end_phase", "evaluate"}
    used |= {"frozen_features"} if method == "pnn" else set()
    assert lowered == used

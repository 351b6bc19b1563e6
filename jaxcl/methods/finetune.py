"""Fine-tuning, which protects nothing: the lower reference; and joint training, the upper one."""

from jaxcl.core.guard import guarded
from jaxcl.core.method import Method
from jaxcl.methods.spec import Built, Problem, Spec


def finetune() -> Method:
    """Plain fine-tuning: every task may change everything. The lower reference.

    Trained on the data of all tasks so far, it is joint training, the upper reference. No weight
    is one task's alone but its head, which is what `forget_task` finds to take out.

    >>> import jaxcl
    >>> finetune().isolates, jaxcl.multihead(finetune(), tasks=5).tasks
    (False, 5)
    """

    def forget_task(theta, state, memory, task, kept, fresh):
        return theta, state, memory

    method = Method(init=lambda key, params: (params, ()), forget_task=forget_task)
    return guarded("finetune", method)


def _build(problem: Problem, options) -> Built:
    return Built(problem.with_heads(finetune()), problem.network())


SPEC = Spec(
    name="finetune",
    label="Fine-tuning",
    words="fine-tuning",
    build=_build,
    color="#8c8c8c",
    role="lower",
    scenarios=("task", "domain", "class"),
    by_default=True,
    presets={
        "permuted_mnist": {"learning_rate": 0.005},
        "permuted_digits": {"learning_rate": 0.02},
        "split_digits": {"learning_rate": 0.02},
        "split_mnist5k": {"learning_rate": 0.02},
    },
)

JOINT = Spec(
    name="joint",
    label="Joint",
    words="joint training",
    build=lambda problem, options: _build(problem, options)._replace(mixed=True),
    color="#262626",
    role="upper",
    scenarios=("task", "domain", "class"),
    by_default=True,
    presets={
        "permuted_digits": {"learning_rate": 0.02},
        "split_mnist5k": {"learning_rate": 0.02},
    },
)

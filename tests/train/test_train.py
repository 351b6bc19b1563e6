"""The engine: which state is kept, when seeds stop, running statistics, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcl
from jaxcl import data, masks, models, recipes, study, train
from jaxcl.core.method import Batch, Phase
from jaxcl.methods.hat import annealed
from jaxcl.study import feed
from jaxcl.train import outputs

OPTIONS = recipes.Options(hidden=(6,), batch=16)
RATE = np.float32(0.05)
FINETUNE = jaxcl.multihead(jaxcl.finetune(), 2)


@functools.cache
def digits():
    """Two tasks of permuted digits, a few of each."""
    full = data.permuted_digits(2)

    def cut(split, count):
        return data.Split(split.x[:count], split.y[:count])

    def few(task):
        return task._replace(
            train=cut(task.train, 80), val=cut(task.val, 40), test=cut(task.test, 8)
        )

    return full._replace(tasks=tuple(map(few, full.tasks)))


def build(method, plan, seeds, options=OPTIONS, **epochs):
    """A study on one device, whose step size is a setting."""
    own = {"prune": 0.9} if method == "packnet" else {}
    choice = (
        options if isinstance(options, recipes.Choice) else recipes.choose(method, options, **own)
    )
    recipe = recipes.recipe(choice, digits())
    return study.build(
        lambda settings: recipe(settings)._replace(**plan), digits(), seeds,
        settings={"learning_rate": np.full(len(seeds), RATE)},
        devices=jax.devices()[:1], **epochs,
    )  # fmt: skip


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


# Annealing


@pytest.mark.parametrize(
    ("annealing", "count", "progress"),
    [
        ("paper", 10, [0, 1 / 2, 1]),  # of three batches, the last of which is not full
        ("paper", 12, [0, 1 / 2, 1]),
        ("paper", 3, [1]),  # the only batch is the last
        ("original", 10, [0, 4 / 10, 8 / 10]),  # the share of the examples seen before
        ("original", 3, [0]),
    ],
)
def test_progress_within_an_epoch(annealing, count, progress):
    seen = []

    def penalty(theta, state, task, progress):
        jax.debug.callback(lambda p: seen.append(float(p)), progress)
        return jnp.float32(0)

    model = models.from_function(lambda params, x: x @ params["w"], {"w": jnp.ones((2, 2))})
    method = jaxcl.finetune()._replace(penalty=penalty)
    setup = train.Setup(method, model, optax.sgd(0.1), batch=4, annealing=annealing)
    examples = train.examples(np.ones((count, 2), "f4"), np.zeros(count, int), length=14)
    learner = train.start(setup, jax.random.key(0), 1)
    jax.block_until_ready(jax.jit(train.epoch, static_argnums=0)(setup, learner, examples, 0, 0))
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), progress, rtol=1e-6)
    scales = [annealed(p, 400.0) for p in sorted(seen)]
    assert scales[0] == (400 if progress == [1] else 1 / 400)
    assert (scales[-1] == 400) == (progress[-1] == 1)


# Retraining


def retrained(built, rate, drop_validation=False):
    """The first task's parameters after pruning and after a retraining at this step size."""
    seen = []

    def retrain(learners, fixed, *args):
        settings, *rest = fixed
        settings = {"learning_rate": jnp.full_like(settings["learning_rate"], rate)}
        return programs["epoch"](learners, (settings, *rest), *args)

    def end(learners, fixed, task, examples, validation):
        validation = None if drop_validation else validation
        learners, _ = programs["end"](learners, fixed, task, examples, validation)
        seen.append(jax.device_get(learners.theta))
        return learners, ()

    programs = built.programs
    built = built._replace(programs=programs | {"epoch_1": retrain, "end": end})
    last = next(event for event in study.run(built) if isinstance(event, study.TaskEnd))
    return seen[0], jax.device_get(last.learners.theta)


def test_a_pruned_network_that_retraining_never_beats_is_kept():
    """PackNet's original keeps the checkpoint that it pruned."""
    built = build("packnet", {"select": "loss"}, [0], epochs=4, retrain_epochs=2)
    assert equal(*retrained(built, rate=3.0))
    assert not equal(*retrained(built, rate=RATE))  # but one that does is not
    assert not equal(*retrained(built, rate=3.0, drop_validation=True))  # the broken twin


def test_a_pretrained_network_is_pruned_before_it_is_trained():
    recipe = recipes.recipe(recipes.choose("packnet", OPTIONS, prune=0.9), digits())
    params, _ = jax.jit(recipe({}).model.init)(jax.random.key(7))

    def pretrained(settings):
        setup = recipe(settings)
        return setup._replace(model=setup.model._replace(init=lambda key: (params, {})))

    built = study.build(
        pretrained, digits(), [0], epochs=[0, 1], retrain_epochs=1, devices=jax.devices()[:1]
    )
    seen = []

    def end(learners, *rest):
        learners, _ = built.programs["end"](learners, *rest)
        seen.append(jax.device_get((learners.theta, learners.state)))
        return learners, ()

    events = list(study.run(built._replace(programs=built.programs | {"end": end})))
    epochs = [(e.task, e.epoch, e.epochs) for e in events if isinstance(e, study.EpochEnd)]
    assert epochs == [(0, 1, 1), (1, 1, 2), (1, 2, 2)]
    weights = np.asarray(params["layers"][0]["kernel"])
    least = np.sort(np.abs(weights).ravel())[round(0.9 * weights.size)]
    theta, state = jax.tree.map(lambda leaf: leaf[0], seen[0])
    np.testing.assert_array_equal(state.owner["layers/0/kernel"], np.abs(weights) >= least)
    kept = np.where(np.abs(weights) >= least, weights, 0)
    np.testing.assert_array_equal(theta["layers"][0]["kernel"], kept)
    np.testing.assert_array_equal(theta["head"]["kernel"][0], params["head"]["kernel"])


@pytest.mark.parametrize("epochs", [0, [1], [1, -1], [1, 1, 1]])
def test_epochs_are_for_each_task(epochs):
    with pytest.raises(ValueError, match="epochs must be at least 1, or one number from 0 on for"):
        build("packnet", {}, [0], epochs=epochs)


# The original HAT's schedule

HASTY = recipes.Options(hidden=(6,), batch=16, optimizer="sgd", patience=1, epochs=30)


def one_by_one(method, seeds, options):
    """The schedule in plain Python: each seed's epochs on both tasks, and where it ends."""

    def setup(rate):
        made = recipes.recipe(method, digits(), options)({"learning_rate": rate})
        return made._replace(select=None, patience=None)

    @jax.jit
    def begin(learner, task):
        return train.begin_task(setup(RATE), learner, task)

    @jax.jit
    def epoch(learner, rate, task, index, examples, validation):
        learner, _ = train.epoch(setup(rate), learner, examples, task, index)
        penalty = setup(rate).method.penalty(learner.theta, learner.state, task, None)
        return learner, train.evaluate(setup(rate), learner, validation, task).loss + penalty

    @jax.jit
    def end(learner, task):
        return train.end_task(setup(RATE), learner, task)

    for seed in seeds:
        learner, epochs = train.start(setup(RATE), jax.random.key(seed), 2), []
        for task, splits in enumerate(digits().tasks):
            learner, rate, best, left = begin(learner, task), RATE, np.inf, options.patience
            kept = learner
            for index in range(options.epochs):
                examples, validation = train.examples(*splits.train), train.examples(*splits.val)
                learner, value = epoch(learner, rate, task, index, examples, validation)
                if value < best:
                    best, kept, left = value, learner, options.patience
                else:
                    left -= 1
                    rate, left = (rate, left) if left else (rate / 3, options.patience)
                    if rate < 0.002 * RATE:
                        break
            learner = end(kept, task)
            epochs.append(index + 1)
        yield epochs, jax.device_get((learner.theta, learner.state))


def together(method, seeds, options):
    """A study: each seed's epochs on both tasks, where they end, and what moved after its stop."""
    built = build(method, {}, seeds, options, epochs=options.epochs)
    stopped, moved = ([], []), set()

    def epoch(learners, *rest):
        before = jax.device_get((learners.theta, learners.stopping))
        learners, metrics = built.programs["epoch"](learners, *rest)
        after = jax.device_get((learners.theta, learners.stopping))
        for i in np.flatnonzero(before[1].stopped):
            one_before, one_after = jax.tree.map(lambda leaf: leaf[i], (before, after))  # noqa: B023
            moved.update([] if equal(one_before, one_after) else [int(i)])
        return learners, metrics

    def end_epoch(learners, fixed, task, validation):
        learners, now = built.programs["end_epoch"](learners, fixed, task, validation)
        stopped[int(task)].append(jax.device_get(learners.stopping.stopped))
        return learners, now

    programs = built.programs | {"epoch_0": epoch, "end_epoch": end_epoch}
    *_, last = study.run(built._replace(programs=programs))
    assert built.traces["epoch"] == 1
    epochs = [np.sum(~np.array(history[:-1]), axis=0) + 1 for history in stopped]
    return np.stack(epochs, 1).tolist(), jax.device_get(last.learners), moved


def test_seeds_in_one_program_stop_where_single_runs_stop(monkeypatch):
    seeds = range(8)
    epochs, learners, moved = together("hat", seeds, HASTY)
    assert len({e for of_seed in epochs for e in of_seed}) > 3, epochs
    assert moved == set()
    for i, (expected, end) in enumerate(one_by_one("hat", seeds, HASTY)):
        assert epochs[i] == expected
        got = jax.tree.map(lambda leaf: leaf[i], (learners.theta, learners.state))  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), got, end)

    def never_stops(setup, learner, *rest, **options):
        running = learner.stopping._replace(stopped=jnp.zeros_like(learner.stopping.stopped))
        after, metrics = steps(setup, learner._replace(stopping=running), *rest, **options)
        return after._replace(stopping=learner.stopping), metrics

    steps = train.steps
    monkeypatch.setattr(train, "steps", never_stops)
    assert together("hat", seeds, HASTY)[2] != set()  # the broken twin


@pytest.mark.parametrize("needed", [False, True])
def test_a_learner_that_stands_still_does_not_diverge(needed):
    """What a phase would do that it does not need is thrown away, and so is how it ends."""
    phases = (Phase(needed=lambda theta, state, task: jnp.bool_(needed)),)
    setup = train.Setup(
        jaxcl.finetune()._replace(phases=phases), models.mlp(2, (), 2), optax.sgd(0.1),
        loss=lambda logits, labels: jnp.full(labels.shape, jnp.inf), batch=2,
    )  # fmt: skip
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 1), 0)
    rows = train.examples(np.ones((2, 2), np.float32), [0, 1])
    after = jax.jit(functools.partial(train.epoch, setup))(learner, rows, 0, 0)[0]
    assert bool(after.position.finite) == (not needed)


def test_joint_training_is_judged_by_the_tasks_so_far():
    setup = recipes.recipe("joint", digits(), recipes.Options(hidden=(6,), select="loss"))({})
    mixture = study.mixed([task.train for task in digits().tasks])
    validation = study.stack([task.val for task in digits().tasks])

    @jax.jit
    def learn(learner, task, data):
        learner = train.begin_task(setup, learner, task)
        learner, _ = train.epoch(setup, learner, data, task, 0, validation)
        return learner, train.evaluate_all(setup, learner, validation).loss

    learner = train.start(setup, jax.random.key(0), 2)
    for task in range(2):
        learner, losses = learn(learner, task, mixture(task))
        np.testing.assert_allclose(learner.stopping.best, np.mean(losses[: task + 1]), 1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_joint_training_trains_the_heads_of_all_tasks_so_far():
    setup = recipes.recipe("joint", digits(), recipes.Options(hidden=(6,)))({})
    data = study.mixed([task.train for task in digits().tasks])(1)

    def moved(setup):
        @jax.jit
        def heads():
            learner = train.start(setup, jax.random.key(0), 2)
            trained, _ = train.epoch(setup, learner, data, 1, 0)
            return learner.theta["head"]["kernel"] != trained.theta["head"]["kernel"]

        return heads().any((1, 2)).tolist()

    assert moved(setup) == [True, True]
    whoever = setup._replace(method=jaxcl.multihead(jaxcl.finetune(), 2))
    assert moved(whoever) == [True, True]
    twin = setup._replace(method=whoever.method._replace(trainable_seen=None))
    assert moved(twin) == [False, True]


def test_mixed_training_refuses_a_method_that_isolates():
    setup = recipes.recipe("joint", digits())({})
    for isolating in (jaxcl.packnet(2), jaxcl.hat(setup.model.wiring, 2)):
        refused = setup._replace(method=jaxcl.multihead(isolating, 2))
        with pytest.raises(ValueError, match="which a method that isolates tasks does not"):
            train.start(refused, jax.random.key(0), 2)


def test_weight_decay_is_decoupled_and_for_kernels_alone():
    theta = {
        "params": {"layer": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}},
        "embeddings": {"layer": jnp.ones((1, 2))},
        "laterals": [{"alpha": jnp.ones(1), "project": jnp.ones(2)}],
    }
    for name in ("sgd", "momentum", "adam"):
        tx = recipes.optimizer(recipes.Options(optimizer=name, learning_rate=0.5, weight_decay=0.1))
        still, state = jax.tree.map(jnp.zeros_like, theta), tx.init(theta)
        for _ in range(2):
            updates, state = tx.update(still, state, theta)
        moved = {path: u.ravel()[0] for path, u in masks.leaves_by_path(updates).items() if u.any()}
        assert moved == {"params/layer/kernel": -0.05, "laterals/0/project": -0.05}, name


@pytest.mark.parametrize(("given", "decay"), [(None, 1e-4), (0.0, 0.0), (0.1, 0.1)])
def test_adamw_decays_by_a_share_of_its_own_only_if_none_is_given(given, decay):
    rates = recipes.Options(optimizer="adamw", learning_rate=1.0, weight_decay=given)
    tx, theta = recipes.optimizer(rates), {"kernel": jnp.ones(2)}
    updates, _ = tx.update({"kernel": jnp.zeros(2)}, tx.init(theta), theta)
    np.testing.assert_allclose(updates["kernel"], -decay)


def test_frozen_columns_beyond_the_budget_run_in_every_step(monkeypatch):
    def learn(budget):
        monkeypatch.setattr(feed, "FEATURE_BYTES", budget)
        built = build("pnn", {}, [0], epochs=1)
        *_, last = study.run(built)
        return built.traces["frozen_features"], jax.device_get(last.learners.theta)

    def alike(a, b):
        return all(
            jax.tree.leaves(jax.tree.map(lambda *pair: np.allclose(*pair, 1e-4, 1e-5), a, b))
        )

    def zeros(*args):
        return jax.tree.map(jnp.zeros_like, honest(*args))

    (stored, theta), (on_the_fly, expected) = learn(study.FEATURE_BYTES), learn(0)
    assert (stored, on_the_fly) == (1, 0)
    assert alike(theta, expected)
    honest, zeros.__name__ = train.frozen_features, "frozen_features"
    monkeypatch.setattr(train, "frozen_features", zeros)
    assert not alike(learn(1 << 30)[1], expected)  # the broken twin


@pytest.mark.parametrize("method", ["packnet", "hat", "pnn"])
def test_an_epoch_takes_the_place_of_the_learners_before_it(method):
    built, before = build(method, {}, [0, 1], epochs=1), []

    def epoch(learners, *rest):
        before.extend(jax.tree.leaves((learners.theta, learners.opt_state)))
        return built.programs["epoch"](learners, *rest)

    *_, last = study.run(built._replace(programs=built.programs | {"epoch_0": epoch}))
    assert before and all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(last.learners.state))


@pytest.mark.parametrize("method", ["joint", "pnn"])
def test_a_program_s_bytes_are_known_before_it_runs(method):
    built = build(method, {"select": "loss"}, [0], epochs=1)
    weights = jax.eval_shape(built.recipe({"learning_rate": RATE}).model.init, jax.random.key(0))
    assert study.program_bytes(built) > masks.size_bytes(weights[0])


# Running statistics


class Mean(nnx.Module):
    """A norm that is not Flax's: it keeps a running mean, whatever it is told."""

    def __init__(self, rngs):
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.head(x - self.mean[...][None])


def test_frozen_statistics_stay_whatever_norm_keeps_them():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    part = train.examples(x, np.arange(64) % 2)
    setup = train.Setup(
        jaxcl.multihead(jaxcl.finetune(), 3), models.from_nnx(Mean), optax.sgd(0.1), norm="frozen"
    )
    learner, rows = train.start(setup, jax.random.key(0), 3), []
    for task in range(3):
        learner = train.begin_task(setup, learner, task)
        learner, _ = train.epoch(setup, learner, part, jnp.int32(task), 0)
        rows.append(learner.statistics["mean"][task])
    assert np.any(rows[0] != 0)
    assert equal(rows[1:], rows[:1] * 2)


def test_pnn_starts_from_a_trunk_with_running_statistics():
    model = models.resnet18((8, 8, 1), 2, width=1)
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    statistics = jax.tree.map(lambda leaf: leaf + 3, statistics)
    method, network = jaxcl.pnn(model, 2, None)
    setup = train.Setup(method, network, optax.sgd(0.1), norm="shared")
    learner = train.start(setup, jax.random.key(1), 2, params, statistics)
    rows = jax.tree.map(lambda leaf: leaf[0], learner.statistics)
    assert equal(rows, jax.tree.map(lambda leaf: np.stack([leaf] * 2), statistics))
    with pytest.raises(ValueError, match=r"norm='frozen' needs .* a network of columns does not"):
        train.start(setup._replace(norm="frozen"), jax.random.key(1), 2)


# Bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 0}, "Setup: batch must be a whole number of at least 1, got 0"),
        ({"batch": 2.5}, "Setup: batch must be a whole number of at least 1, got 2.5"),
        ({"patience": 0}, "Setup: patience must be a whole number of at least 1, got 0"),
        ({"least_scale": -0.1}, "Setup: least_scale must be at least 0, got -0.1"),
        ({"annealing": "linear"}, "annealing must be one of 'paper', 'original', got 'linear'"),
        ({"select": "f1"}, "select must be one of None, 'loss', 'accuracy', got 'f1'"),
        ({"norm": "none"}, "norm must be one of None, 'shared', .* got 'none'"),
        ({"classes": jnp.array([10])}, "classes has 1 entries for 2 tasks"),
        ({"classes": jnp.array([10, 0])}, r"classes must be at least 1, got \[10  0\]"),
        ({"classes": None, "mixed": True, "method": FINETUNE}, "mixed training needs classes"),
        ({"method": jaxcl.packnet(3)}, "made for 3 tasks, not for 2"),
    ],
)
def test_setups_that_mean_nothing(change, words):
    setup = recipes.recipe("packnet", digits(), OPTIONS)({})
    with pytest.raises(ValueError, match=words):
        train.start(setup._replace(**change), jax.random.key(0), 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "lenet"}, "network must be one of 'mlp', 'alexnet', .* got 'lenet'"),
        ({"network": None}, "network must be one of 'mlp', 'alexnet', .* got None"),
        ({"optimizer": "lion"}, "optimizer must be one of 'sgd', .* 'adamw', got 'lion'"),
        ({"precision": "float16"}, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"lateral": "none"}, "lateral must be one of 'adapter', 'linear', got 'none'"),
        ({"norm": "none"}, "norm must be one of 'frozen', 'per_task', got 'none'"),
        ({"select": "f1"}, "select must be one of 'loss', 'accuracy', got 'f1'"),
        ({"hidden": ()}, "hidden needs at least one width"),
        ({"hidden": (8, 0)}, "hidden must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"s_max": 1.0}, "s_max must be above 1, got 1.0"),
        ({"c": np.inf}, "c must be finite, got inf"),
        ({"prune": 1.1}, "prune must be at most 1, got 1.1"),
        ({"alpha": np.nan}, "alpha must be finite, got nan"),
        ({"column_width": 0.0}, "column_width must be above 0, got 0.0"),
    ],
)
def test_options_that_mean_nothing(change, words):
    owner = {"s_max": "hat", "c": "hat", "prune": "packnet"}
    owner |= dict.fromkeys(("lateral", "alpha", "column_width"), "pnn")
    method = owner.get(*change)
    with pytest.raises(ValueError, match=f"{method or 'Options'}: {words}"):
        recipes.choose(method or "pnn", **change)


def with_second_task(change):
    first, second = digits().tasks
    return digits()._replace(tasks=(first, second._replace(**change(second))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: {"train": data.Split(t.train.x[:, :60], t.train.y)},
            r"task 1, train: x has shape \(60,\), expected \(64,\)",
        ),
        (
            lambda t: {"val": data.Split(t.val.x.astype("f4"), t.val.y)},
            "task 1, val: x is float32, but uint8 in the first task",
        ),
        (lambda t: {"test": data.Split(t.test.x[:0], t.test.y[:0])}, "task 1, test: x is empty"),
        (
            lambda t: {"train": data.Split(t.train.x, t.train.y * 2)},
            "task 1, train: label 18 in a task of 10 classes",
        ),
        (lambda t: {"classes": 12}, r"task 1: 12 classes, but .* logits have shape \(1, 10\)"),
    ],
)
def test_tasks_that_do_not_fit(change, words):
    recipe = recipes.recipe("packnet", digits(), OPTIONS)
    with pytest.raises(ValueError, match=words):
        study.build(recipe, with_second_task(change), [0], epochs=1)


def test_a_study_checks_its_setup_before_it_runs():
    def build(change, **settings):
        recipe = recipes.recipe("packnet", digits(), OPTIONS)
        made = lambda settings: change(recipe(settings))  # noqa: E731
        study.build(made, digits(), [0, 0], settings=settings, epochs=1)

    norm = models.resnet18((8, 8, 1), 10, width=1)
    headless = jaxcl.multihead(jaxcl.packnet(2), 2, "tail")
    with pytest.raises(ValueError, match="declare what becomes of them"):
        build(lambda setup: setup._replace(model=norm, norm=None))
    with pytest.raises(ValueError, match="matches no leaf"):
        build(lambda setup: setup._replace(method=headless))
    with pytest.raises(ValueError, match="task 1 gives up no weight"):  # of the second replica
        build(lambda setup: setup, prune=[0.5, 0.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {"head": p["head"]}, "no such leaf at 'layers/0/bias', where .* shape"),
        (lambda p: p | {"tail": p["head"]}, "at 'tail/bias', where the model has no such leaf"),
        (lambda p: p | {"head": p["layers"][0]}, r"shape \(6,\) at 'head/bias', .* \(10,\)"),
    ],
)
def test_parameters_of_another_model(change, words):
    setup = recipes.recipe("packnet", digits(), OPTIONS)({})
    params = jax.eval_shape(setup.model.init, jax.random.key(0))[0]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    train.start(setup, jax.random.key(0), 2, params)
    with pytest.raises(ValueError, match=words):
        train.start(setup, jax.random.key(0), 2, change(params))


# Scenarios


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_a_scenario_decides_on_heads_and_logits(scenario):
    choice = recipes.choose("finetune", OPTIONS, scenario=scenario)
    setup = recipes.recipe(choice, digits())({})
    learner = train.begin_task(setup, train.start(setup, jax.random.key(0), 2), 0)
    width = 10 if scenario == "domain" else 20
    assert learner.theta["head"]["kernel"].shape == (6, width)  # one head for all
    split = digits().tasks[1].train
    batch = Batch(split.x[:5], jnp.asarray(split.y[:5]))
    logits = jnp.zeros((5, width))
    seen = outputs.visible(setup, (5, width), batch, 0)
    expected = np.arange(width) < 10  # of the first task alone
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, (5, width)))
    later = outputs.labels(setup, batch, 1)
    np.testing.assert_array_equal(later, split.y[:5] + (10 if scenario == "class" else 0))
    kept = setup._replace(unseen="kept")
    loss = outputs.scores(kept, logits, batch, 0)[0]
    np.testing.assert_allclose(loss, np.log(width), rtol=1e-6)  # all logits take part
    built = build("finetune", {}, [0], choice, epochs=20)
    ends = [event for event in study.run(built) if isinstance(event, study.TaskEnd)]
    assert ends[0].accuracy[0, 0] > 0.3
    if scenario == "class":  # no logit of the second task could be the largest yet
        assert ends[0].accuracy[0, 1] == 0


def test_a_scenario_that_a_method_is_not_made_for():
    with pytest.raises(ValueError, match="packnet is trained in the scenario task, not in 'class'"):
        recipes.choose("packnet", scenario="class")

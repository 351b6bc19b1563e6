"""Law 6: replaying the recorded steps of the original implementations gives their numbers.

The oracles were recorded in PyTorch from joansj/hat, arunmallya/packnet and Avalanche's PNN. Each
task is replayed twice: step by step, which shows every quantity, and by the training engine as one
epoch. Floats agree relative to an array's largest entry; masks and owners agree exactly.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcl
from jaxcl import IsolateState, LateralSpec, Model, isolate, masks, multihead, train
from jaxcl.methods.hat import annealed
from jaxcl.methods.pnn import apply_lateral
from jaxcl.train import loop

TOLERANCE = {"f32": 1e-5, "f64": 1e-10}
TASKS, CLASSES, LAYERS, LR = 3, np.array([3, 4, 3], np.int32), ("fc1", "fc2"), 0.05
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles fast; the oracles replace all that is random


@pytest.fixture(params=["f32", "f64"])
def precision(request):
    with jax.enable_x64(request.param == "f64"):
        yield request.param


@pytest.fixture(autouse=True)
def recorded_order(monkeypatch):
    """The engine takes the examples as they come, for the recorded minibatches are shuffled."""
    monkeypatch.setattr(loop, "random_order", lambda key, length, count: jnp.arange(length))


# Reading an oracle: arrays by name -> trees of the library, whose kernels are [in, out].


def read(name):
    with np.load(Path(__file__).parent / "oracles" / f"{name}.npz") as file:
        return dict(file)


def part(oracle, prefix):
    """The arrays below a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in oracle.items() if k.startswith(prefix)}


def widen(head):
    """Fills up 3 classes to 4 with zeros; `Setup.classes` keeps the fourth out of the loss."""
    return jax.tree.map(lambda a: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 4 - a.shape[-1])]), head)


def layer(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def mlp_params(weights, head):
    """Two shared layers, and all tasks' heads as `multihead` stacks them."""
    heads = [widen(layer(weights, head.format(task))) for task in range(TASKS)]
    shared = {name: layer(weights, name) for name in LAYERS}
    return shared | {"head": jax.tree.map(lambda *rows: np.stack(rows), *heads)}


def close(actual, expected):
    """Every leaf agrees with its expectation, to the precision of the running test."""
    tolerance = TOLERANCE["f64" if jax.config.jax_enable_x64 else "f32"]

    def check(path, a, e):
        a, e = np.broadcast_arrays(a, e)
        np.testing.assert_allclose(a, e, 0, tolerance * np.abs(e).max(), err_msg=path)

    masks.map_with_path(check, expected, actual)


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def mlp(params, statistics, x, *, train=False, key=None):
    for name in LAYERS:
        x = jax.nn.relu(affine(params[name], x))
        if "gates" in params:
            x = x * params["gates"][name][None]
    return affine(params["head"], x), statistics


def mlp_model(params):
    params = params | {"head": jax.tree.map(lambda rows: rows[0], params["head"])}
    return Model(lambda key: (jax.tree.map(jnp.asarray, params), {}), mlp)


@jax.jit
def scores(logits, y, task):
    """Mean cross-entropy and accuracy over the task's own classes."""
    own = jnp.where((jnp.arange(4) < jnp.asarray(CLASSES)[task])[None], logits, -1e30)
    ce = optax.softmax_cross_entropy_with_integer_labels(own, y)
    return jnp.mean(ce), jnp.mean(jnp.argmax(own, axis=-1) == y)


def engine(method, model, optimizer):
    """The training engine, and its step built anew of public pieces to show what goes on in it."""
    classes = jnp.asarray(CLASSES)
    setup = train.Setup(method, model, optimizer, classes=classes, batch=8, annealing="original")

    def step(learner, x, y, task, progress):
        def objective(theta):
            params = method.view(theta, learner.state, task, progress)
            logits, _ = model.apply(params, {}, x, train=True)
            ce, _ = scores(logits, y, task)
            penalty = method.penalty(theta, learner.state, task, progress)
            return ce + penalty, {"logits": logits, "ce": ce, "penalty": penalty}

        gradient, seen = jax.grad(objective, has_aux=True)(learner.theta)
        trainable = method.trainable(learner.theta, learner.state, task)
        state = IsolateState(jax.tree.map(jnp.asarray, trainable), learner.opt_state)
        updates, (_, opt_state) = isolate(optimizer).update(gradient, state, learner.theta)
        theta = method.project(optax.apply_updates(learner.theta, updates))
        seen["gradient"], seen["masked"] = gradient, optax.tree.get(opt_state, "masked")
        seen["descent"] = jax.tree.map(lambda update: update / -LR, updates)  # what SGD followed
        return learner._replace(theta=theta, opt_state=opt_state), seen

    run = {name: getattr(method, name) for name in ("view", "penalty", "trainable")}
    for name in ("begin_task", "begin_phase", "end_task", "epoch"):
        run[name] = partial(getattr(train, name), setup)
    run |= {"start": partial(train.start, setup, tasks=TASKS), "step": step, "apply": model.apply}
    return SimpleNamespace(**{name: jax.jit(function) for name, function in run.items()})


def replay(run, learner, oracle, phase, theta_of):
    """The learner after a phase; for each step the learner before, our numbers, those recorded."""
    task, steps = int(phase[1]), [part(oracle, f"{phase}/step{i}/") for i in (1, 2, 3)]
    x, y = (np.concatenate([step[name] for step in steps]) for name in "xy")
    trained, metrics = run.epoch(learner, train.Data(x, y, np.int32(len(y))), task, 0)
    close(trained.theta, theta_of(part(steps[-1], "weights_after/")))
    losses = [step.get("ce", step["loss"]) for step in steps]
    close(metrics.loss, np.average(losses, weights=[len(step["y"]) for step in steps]))
    seen = []
    for i, step in enumerate(steps):
        before, progress = learner, 8 * i / 20  # HAT's share of the examples
        learner, ours = run.step(learner, step["x"], step["y"], task, progress)
        close(ours["logits"], widen(step["logits"]))
        close(ours["ce"], step.get("ce", step["loss"]))
        close(learner.theta, theta_of(part(step, "weights_after/")))
        seen.append((before, ours, step))
    return learner, seen


def hat_theta(weights):
    embeddings = {name: weights[f"e{name}.weight"] for name in LAYERS}
    return {"params": mlp_params(weights, "last.{}"), "embeddings": embeddings}


def attention(theta, task, s):
    return [jaxcl.gate(np.asarray(theta["embeddings"][k])[task], s, 400.0) for k in LAYERS]


def test_hat(precision):
    oracle = read(f"hat_{precision}")
    initial = part(oracle, "init/")
    theta, zeros = hat_theta(initial), jax.tree.map(np.zeros_like, initial)
    model, x = mlp_model(theta["params"]), jnp.ones((1, 16))
    wiring = jaxcl.trace_wiring(lambda p, x: mlp(p, {}, x)[0], model.init(KEY)[0], x)
    wiring = wiring._replace(native=precision == "f32")  # a test each for both ways of gating
    # In float64 the recorded run, too, evaluated the published expression in float64.
    gradient = {"f32": "original", "f64": "published"}[precision]
    method = multihead(jaxcl.hat(wiring, TASKS, gradient=gradient), TASKS)
    run = engine(method, model, optax.chain(optax.clip_by_global_norm(10000.0), optax.sgd(LR)))
    learner = run.start(KEY)._replace(theta=theta)
    for task in range(TASKS):
        learner = run.begin_task(learner, task)
        learner, seen = replay(run, learner, oracle, f"t{task}", hat_theta)
        for i, (before, ours, step) in enumerate(seen):
            s, penalty = annealed(8 * i / 20, 400.0), ours["penalty"]
            close([s, penalty / 0.75, ours["ce"] + penalty], [step["s"], step["reg"], step["loss"]])
            close(attention(before.theta, task, s), [step["mask1"], step["mask2"]])
            raw, final = (hat_theta(zeros | part(step, f"grad_{k}/")) for k in ("raw", "final"))
            close(ours["gradient"]["params"], raw["params"])
            close(ours["descent"]["params"], final["params"])
            if precision == "f64":  # in float32 the last bit of a saturating gate decides
                close(ours["descent"], final)
                close(optax.tree.norm(ours["descent"]), step["grad_norm_before_clip"])
        learner = run.end_task(learner, task)
        theta, state, end = learner.theta, learner.state, part(oracle, f"t{task}/end/")
        close(attention(theta, task, 400.0), [end["mask1_at_smax"], end["mask2_at_smax"]])
        close([state.attention[k] for k in LAYERS], [end["mask_pre1"], end["mask_pre2"]])
        share = masks.resolve(run.trainable(theta, state, task + 1), theta)["params"]
        for name in LAYERS:
            close(share[name], layer(part(end, "mask_back/"), name))
        for old in range(task + 1):
            logits, _ = run.apply(run.view(theta, state, old), {}, oracle[f"t{old}/x"])
            ce, accuracy = scores(logits, oracle[f"t{old}/y"], old)
            loss, hits = end[f"eval_loss_acc_task{old}"] * [1, 20]
            close(logits, widen(end[f"eval_logits_task{old}"]))
            close([ce + run.penalty(theta, state, old), 20 * accuracy], [loss, round(hits)])


@pytest.mark.parametrize("gradient", ["original", "published", "clipped", "ideal"])
def test_hat_gate(precision, gradient):
    """On a grid of embeddings and scales, up to one unit in the last place of `1 - gate`."""
    oracle, kind = read("hat_grid"), {"f32": np.float32, "f64": np.float64}[precision]
    p, s = oracle["p"].astype(kind), oracle["s"].astype(kind)

    def value_and_slope(p, s):
        value, pull = jax.vjp(lambda p: jaxcl.gate(p, s, kind(400), gradient), p)
        return value, pull(jnp.ones_like(p))[0]

    value, slope = jax.device_get(jax.jit(jax.vmap(value_and_slope, (None, 0)))(p, s))
    close(value, oracle[f"mask_{precision}"])
    s = s[:, None]
    if gradient in ("original", "published"):
        recorded = "f32" if gradient == "original" else precision
        expected = oracle[f"compensated_{recorded}"]
        allowed = TOLERANCE[recorded] * np.abs(expected)
        allowed += (
            np.finfo({"f32": np.float32, "f64": np.float64}[recorded]).eps
            * s
            * oracle[f"factor_{recorded}"]
        )
        assert np.all(np.abs(slope - expected) <= allowed)
        assert recorded == "f64" or not np.any(slope[s * p > 17])
    else:
        window = np.abs(s * p) <= (50 if gradient == "clipped" else np.inf)
        close(slope * window, oracle["closed_form_smax_dsigmoid"] * window)


def test_packnet(precision):
    oracle = read(f"packnet_nobias_{precision}")
    theta_of, initial = partial(mlp_params, head="head{}"), part(oracle, "init/")
    theta, zeros = theta_of(initial), jax.tree.map(np.zeros_like, initial)
    no_bias = masks.by_path(theta, [("fc./bias", False), ("", True)])
    method = multihead(jaxcl.packnet(TASKS, oracle["hp/ratios"], ties="original"), TASKS)
    sgd = optax.chain(optax.snapshot("masked", lambda gradient: gradient), optax.sgd(LR, 0.9))

    def without_biases(theta, state, task):
        return jax.tree.map(jnp.logical_and, method.trainable(theta, state, task), no_bias)

    run = engine(method, mlp_model(theta), sgd)
    # `packnet` trains the first task's biases in both phases, the recorded run in one alone.
    rerun = engine(method._replace(trainable=without_biases), mlp_model(theta), sgd)
    learner = run.start(KEY)._replace(theta=theta)

    def check_owner(name):
        for path, owner in part(oracle, name).items():
            np.testing.assert_array_equal(learner.state.owner[f"{path}/kernel"].T, owner, name)

    for task in range(TASKS):
        learner = run.begin_task(learner, task)
        check_owner(f"t{task}/mask_during_train/")
        for phase in ("train", "finetune"):
            if phase == "finetune":
                learner = run.begin_phase(run.end_task(learner, task), task)
                check_owner(f"t{task}/mask_after_prune/")
                close(learner.theta, theta_of(part(oracle, f"t{task}/weights_after_prune/")))
            by = rerun if phase == "finetune" else run
            learner, seen = replay(by, learner, oracle, f"t{task}/{phase}", theta_of)
            for _, ours, step in seen:
                close(ours["gradient"], theta_of(zeros | part(step, "grad_raw/")))
                close(ours["masked"], theta_of(zeros | part(step, "grad_masked/")))
        check_owner(f"t{task}/mask_end/")
        for name, bias in part(oracle, f"t{task}/bias_saved/").items():
            close(learner.theta[name]["bias"], bias)
        for old in range(task + 1):
            view = run.view(learner.theta, learner.state, old)
            logits, _ = run.apply(view, {}, oracle[f"t{old}/x_eval"])
            close(logits, widen(oracle[f"t{task}/end/eval_logits_task{old}"]))
            for name, weight in part(oracle, f"t{task}/end/masked_weight_task{old}/").items():
                close(view[name]["kernel"].T, weight)


def test_packnet_rounding():
    recorded = read("packnet_rounding")
    smallest = jax.jit(masks.smallest_fraction, static_argnames="ties")
    for case in sorted({name.partition("/")[0] for name in recorded}):
        oracle = part(recorded, f"{case}/")
        w, ratio, before = oracle["w"], oracle["ratio"], oracle["mask_before"]
        freed = smallest(w, ratio, before == 2, ties="original")
        np.testing.assert_array_equal(np.where(freed, 0, before), oracle["mask_after"], case)
        np.testing.assert_array_equal(np.where(freed, 0, w), oracle["w_after"], case)
        assert np.sum(smallest(w, ratio, before == 2)) == oracle["cutoff_rank"], case


# PNN. Avalanche departs from the paper, which `pnn` follows: its adapters sit before the two hidden
# layers and not before the head, so their sources are the input and the first layer's output; V has
# the width of the layer that it serves; U has a bias. All this is a matter of the column's design:
# it states what its laterals read and where they arrive, and counts U's bias as its own.

SPECS = (LateralSpec(hidden=(16,), out=(8,)), LateralSpec(hidden=(8,), out=(8,)))
ADAPTER = {"alphas": 0, "V.weight": (8, 0), "V.bias": 8, "U.weight": (8, 8), "U.bias": 8}


def pnn_theta(weights, task):
    """A column with its laterals; sources that do not exist yet are zero."""
    layers, laterals, later = [], [], (0, TASKS - 1 - task)
    for i, spec in enumerate(SPECS):
        name = f"layers.{i}.columns.{task}"
        adapter = {key: np.zeros(shape) for key, shape in ADAPTER.items()}
        adapter |= part(weights, f"{name}.adapter.")
        project = adapter["V.weight"].T.reshape(task, *spec.hidden, 8)
        lateral = {"alpha": np.pad(adapter["alphas"], later), "bias": adapter["V.bias"]}
        lateral |= {"project": np.pad(project, (later, (0, 0), (0, 0)))}
        laterals.append(lateral | {"kernel": adapter["U.weight"].T})
        layers.append(layer(weights, f"{name}.itoh") | {"lateral_bias": adapter["U.bias"]})
    head = widen(layer(weights, f"classifier.classifiers.{task}.classifier"))
    theta = {"column": {"layers": layers, "head": head}, "laterals": laterals}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, head["bias"].dtype), theta)


def column(params, statistics, x, laterals, *, train=False, key=None):
    hiddens = []
    for own, lateral in zip(params["layers"], laterals):
        hiddens.append(x)
        x = jax.nn.relu(affine(own, x) + own["lateral_bias"][None] + lateral)
    return affine(params["head"], x), tuple(hiddens), statistics


def test_pnn(precision):
    oracle = read(f"pnn_avalanche_{precision}")
    params = pnn_theta(part(oracle, "t0/init/"), 0)["column"]
    model = Model(lambda key: (params, {}), apply=None, column=column, laterals=SPECS)
    method, network = jaxcl.pnn(model, TASKS, projection=8)
    # The first column has no laterals, so no bias of theirs to train.
    method = method._replace(
        trainable=lambda theta, state, task: masks.by_path(
            theta, [("lateral_bias", task > 0), ("", True)]
        )
    )
    run, frozen = engine(method, network, optax.sgd(LR)), jax.jit(network.frozen)
    lateral_of = jax.jit(apply_lateral, static_argnums=1)
    learner = run.start(KEY)
    for task in range(TASKS):
        learner = run.begin_task(learner, task)
        theta_of = partial(pnn_theta, task=task)
        learner = learner._replace(theta=theta_of(part(oracle, f"t{task}/init/")))
        learner, seen = replay(run, learner, oracle, f"t{task}", theta_of)
        for before, ours, step in seen:
            close(ours["descent"], theta_of(part(step, "grad/")))
            view = run.view(before.theta, before.state, task, 0.0)
            sources = jax.device_get(frozen(view, {}, step["x"]))
            columns = jax.device_get(run.end_task(before, task).state.columns)
            for c in range(task + 1):
                x, theta = step["x"], jax.tree.map(lambda rows, c=c: rows[c], columns)
                for i, own in enumerate(theta["column"]["layers"]):
                    lateral = lateral_of(theta["laterals"][i], SPECS[i], sources[i], c)
                    lateral = np.asarray(lateral) + own["lateral_bias"]
                    close(lateral, step.get(f"lateral/layer{i}/col{c}", np.zeros((8, 8))))
                    preactivation = affine(own, x) + lateral
                    close(preactivation, step[f"preact/layer{i}/col{c}"])
                    if c < task:
                        close(sources[i][:, c], x)
                    x = np.maximum(preactivation, 0)
        learner = run.end_task(learner, task)
        for old in range(task + 1):
            view = run.view(learner.theta, learner.state, old)
            logits, _ = run.apply(view, {}, oracle[f"t{old}/step1/x"])
            close(logits, widen(oracle[f"t{task}/end/logits_task{old}_on_its_first_batch"]))

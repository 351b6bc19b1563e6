"""What a user would otherwise run in PyTorch: plain training loops, and Avalanche's strategies.

The loops are written to be as fast as plain PyTorch gets on a CPU: tensors in memory, normalized
beforehand; batches gathered by a permutation drawn for each epoch; kernels stored as [in, out],
the faster layout there; `torch.autograd.grad`, and fused in-place updates instead of an optimizer.
They take whole batches only and use no dropout.

PyTorch and Avalanche are optional: `available` says which peers can run here, and why not.
For a CPU: `pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu`, then
`pip install avalanche-lib`. Run as a program, this file prints the rates of all peers on MNIST.
"""

import argparse
import functools
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

try:
    import torch
except ImportError:
    torch = None

RATE = 0.05  # learning rate of plain SGD, everywhere here
S_MAX, PENALTY, CLIP = 400.0, 0.75, 10_000.0  # HAT's steepest gate, c, largest gradient norm
STRATEGIES = (
    "naive",
    "ewc",
    "si",
    "mas",
    "replay",
    "agem",
    "derpp",
    "packnet",
    "pnn",
)  # Avalanche's
MEMORY = 200  # examples that its strategies of replay keep


class Problem(NamedTuple):
    """One task, and the MLP to train on it."""

    x: Any  # float [N, features], normalized
    y: Any  # int [N], in 0..classes-1
    hidden: tuple[int, ...]  # widths of the hidden layers
    classes: int  # width of the head
    batch: int = 64  # examples in a step
    seed: int = 0  # of weights, embeddings and the order of the examples
    start: Any = None  # initial (kernel [in, out], bias [out]) of each layer; None = PyTorch's
    compile: bool = False  # whether torch.compile compiles the loss and its gradient


class Loop(NamedTuple):
    """A task being trained by PyTorch, epoch by epoch, so that others can take turns."""

    run_epoch: Callable  # run_epoch() -> number of steps done
    accuracy: Callable  # accuracy(x, y) -> share of x [N, features] classified as y [N]


def available() -> dict[str, str | None]:
    """Tells which peers can run: name -> None, or the reason why it cannot."""
    reasons: dict[str, str | None] = {"torch": None, "avalanche": None}
    for name, load in (("torch", _torch), ("avalanche", _avalanche)):
        try:
            load()
        except Exception as error:  # incompatible packages fail in many ways
            reasons[name] = f"{type(error).__name__}: {error}"
    return reasons


def torch_finetune(problem: Problem) -> Loop:
    """Trains all weights, with nothing to prevent forgetting."""
    net = kernels, biases, _ = _network(problem)
    trained = [*kernels, *biases]
    return _loop(problem, net, trained, lambda g, _: torch._foreach_add_(trained, g, alpha=-RATE))


def torch_packnet(problem: Problem, owners=None, task: int = 2) -> Loop:
    """Trains the weights that `task` owns, as PackNet does from the second task on.

    Biases of the trunk are frozen. Free weights are set to zero once: the masked gradients of
    plain SGD keep them there, so no step has to do it again.

    Args:
      problem: the task and its network.
      owners: int [in, out] for each kernel of the trunk, 0 = free. Drawn if None: a half belongs
        to task 1 and the other to `task`.
      task: number of the task that trains.
    """
    net = kernels, biases, generator = _network(problem)
    if owners is None:
        coins = [torch.randint(2, kernel.shape, generator=generator) for kernel in kernels[:-1]]
        owners = [1 + (task - 1) * coin for coin in coins]
    owners = [_tensor(owner) for owner in owners]
    torch._foreach_mul_(kernels[:-1], [(owner != 0).float() for owner in owners])
    trained = [*kernels, biases[-1]]
    own = [(owner == task).float() for owner in owners]
    own += [torch.ones_like(leaf) for leaf in trained[-2:]]
    add = torch._foreach_addcmul_
    return _loop(problem, net, trained, lambda g, _: add(trained, g, own, -RATE))


def torch_hat(problem: Problem, used=None) -> Loop:
    """Trains a later task with HAT: annealed gates, regularizer, masks, compensated embeddings.

    Args:
      problem: the task and its network.
      used: cumulative attention of earlier tasks, float [units] for each hidden layer, in [0, 1].
        Drawn if None: that of one task whose embeddings are standard normal.
    """
    net = kernels, biases, generator = _network(problem)
    hidden = list(problem.hidden)
    embedding = torch.randn(sum(hidden), generator=generator)  # of all layers
    if used is None:
        used = torch.randn(sum(hidden), generator=generator).mul(S_MAX).sigmoid().split(hidden)
    used = [_tensor(attention) for attention in used]
    unused = 1 - torch.cat(used)
    free = max(unused.sum().item(), 1e-6)
    trained = [*kernels, *biases, embedding]
    below = [torch.ones(len(kernels[0])), *used]
    factors = [1 - torch.minimum(i[:, None], o) for i, o in zip(below, used)]
    factors += [torch.ones_like(kernels[-1]), *(1 - attention for attention in used)]
    factors += [torch.ones_like(leaf) for leaf in (biases[-1], embedding)]

    def steepness(progress):
        return 1 / S_MAX + (S_MAX - 1 / S_MAX) * progress

    def forward(x, progress):
        gates = torch.sigmoid(steepness(progress) * embedding)
        return _logits(x, kernels, biases, gates.split(hidden)), PENALTY * gates.dot(unused) / free

    def update(gradients, progress):
        s, rate = steepness(progress), RATE
        slope = (s * embedding).clamp_(-50, 50).cosh_().add_(1)
        gradients[-1].mul_(slope).div_(embedding.cosh().add_(1)).mul_(S_MAX / s)
        if _norm(gradients) > CLIP:  # masking only shrinks: otherwise there is nothing to clip
            rate *= min(1.0, CLIP / _norm(torch._foreach_mul(gradients, factors)))
        torch._foreach_addcmul_(trained, gradients, factors, -rate)
        embedding.clamp_(-6, 6)

    return _loop(problem, net, trained, update, forward)


def torch_convolutions(network: str, x, y, batch: int = 64) -> Loop:
    """Trains all weights of the AlexNet-like net or of ResNet-18, with dropout and BatchNorm.

    Channels come last, which is PyTorch's faster layout on a CPU.

    Args:
      network: "alexnet" or "resnet18", as `jaxcl.models` has them.
      x: float [N, 32, 32, 3], normalized.
      y: int [N], in 0..9.
      batch: examples in a step.
    """
    net = {"alexnet": _alexnet, "resnet18": _resnet18}[network](_torch().nn)
    net = net.to(memory_format=torch.channels_last)
    x, y = _tensor(x).permute(0, 3, 1, 2), _tensor(y, torch.int64)
    x = x.contiguous(memory_format=torch.channels_last)
    trained = list(net.parameters())

    def run_epoch() -> int:
        net.train()
        order = torch.randperm(len(x)).split(batch)
        for rows in order:
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                torch._foreach_add_(trained, gradients, alpha=-RATE)
        return len(order)

    def accuracy(x, y) -> float:
        with torch.no_grad():
            guess = net.eval()(_tensor(x).permute(0, 3, 1, 2)).argmax(1)
        return (guess == _tensor(y)).float().mean().item()

    return Loop(run_epoch, accuracy)


def _alexnet(nn):
    layers = []
    for inputs, width, kernel, rate in ((3, 64, 4, 0.2), (64, 128, 3, 0.2), (128, 256, 2, 0.5)):
        layers += [nn.Conv2d(inputs, width, kernel), nn.ReLU(), nn.Dropout(rate), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for inputs in (1024, 2048):
        layers += [nn.Linear(inputs, 2048), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


def _resnet18(nn):
    def norm_of(inputs, width, kernel, stride):
        convolution = nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(width))

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.first = norm_of(inputs, width, 3, stride)
            self.second = norm_of(width, width, 3, 1)
            widens = inputs != width
            self.shortcut = norm_of(inputs, width, 1, stride) if widens else nn.Identity()

        def forward(self, x):
            return (self.second(self.first(x).relu_()) + self.shortcut(x)).relu_()

    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(norm_of(3, 64, 3, 1), nn.ReLU(), *blocks, *ends)


def _loop(problem: Problem, net, trained: list, update: Callable, forward=None) -> Loop:
    """Epochs of forward(x, progress) -> (logits, *penalties) and update(gradients, progress).

    `progress` goes from 0 to 1 within an epoch; accuracy is measured at 1.
    """
    kernels, biases, generator = net
    forward = forward or (lambda x, progress: (_logits(x, kernels, biases),))
    x, y, batch = _tensor(problem.x), _tensor(problem.y, torch.int64), problem.batch
    steps = len(x) // batch
    trained = [leaf.requires_grad_() for leaf in trained]

    def loss(x, y, progress):
        logits, *penalties = forward(x, progress)
        return sum(penalties, torch.nn.functional.cross_entropy(logits, y))

    loss = torch.compile(loss) if problem.compile else loss

    def run_epoch() -> int:
        order = torch.randperm(len(x), generator=generator)[: steps * batch]
        for index, rows in enumerate(order.split(batch)):
            progress = index / max(steps - 1, 1)
            gradients = torch.autograd.grad(loss(x[rows], y[rows], progress), trained)
            with torch.no_grad():
                update(gradients, progress)
        return steps

    def accuracy(x, y) -> float:
        with torch.no_grad():
            return (forward(_tensor(x), 1.0)[0].argmax(1) == _tensor(y)).float().mean().item()

    return Loop(run_epoch, accuracy)


def _network(problem: Problem):
    """Kernels [in, out], biases [out] and the generator that draws everything."""
    generator = _torch().Generator().manual_seed(problem.seed)
    sizes = [np.shape(problem.x)[1], *problem.hidden, problem.classes]
    start = problem.start or [
        [(torch.rand(*shape, generator=generator) * 2 - 1) / i**0.5 for shape in ((i, o), (o,))]
        for i, o in itertools.pairwise(sizes)
    ]
    return *([_tensor(leaf) for leaf in leaves] for leaves in zip(*start)), generator


def _logits(x, kernels, biases, gates=None):
    """The MLP, the units of its hidden layers scaled by gates if there are any."""
    for layer in range(len(kernels) - 1):
        x = torch.addmm(biases[layer], x, kernels[layer]).relu_()
        x = x if gates is None else x * gates[layer]
    return torch.addmm(biases[-1], x, kernels[-1])


def _norm(tensors) -> float:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).item()


def _tensor(array, dtype=None):
    return torch.tensor(np.asarray(array), dtype=dtype or torch.float32)


def _torch():
    """PyTorch on all cores, denormal numbers flushed to zero."""
    module = importlib.import_module("torch")
    module.set_num_threads(os.cpu_count() or 1)
    module.set_flush_denormal(True)
    return module


@functools.cache
def _avalanche() -> SimpleNamespace:
    """Avalanche's modules, also where torchvision was built for another torch.

    PyPI's torchvision is built for CUDA. Beside a torch for the CPU its operators do not load and
    its import fails on two of them, which Avalanche never calls: they are declared here.
    """
    library = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = _torch().library.Library("torchvision", "FRAGMENT")  # must outlive this call
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    names = ("benchmarks", "models", "models.packnet", "training.plugins", "training.supervised")
    modules = {name.split(".")[-1]: importlib.import_module(f"avalanche.{name}") for name in names}
    return SimpleNamespace(library=library, **modules)


def avalanche_strategy(name: str, tasks: list[Problem], tests, epochs: int = 1) -> Iterator[tuple]:
    """Trains tasks one after the other with a strategy of Avalanche.

    Data loader, networks and optimizer are Avalanche's own; loggers and metrics are off. A head
    for each task, but one for all in its PackNet and its DER++. Its PNN departs from the paper:
    laterals at the first layer too, none into the head.

    Args:
      name: one of `STRATEGIES`.
      tasks: alike but for their data; hidden layers of one width; the first one's seed counts.
      tests: (x, y) of each task, to measure accuracy on.
      epochs: passes over a task. PackNet prunes halfway, and so needs two.

    Yields:
      After each task: its number of steps, the seconds spent in its epochs (without what the
      strategy does before and after them) and the accuracy on its test data.
    """
    first, count = tasks[0], len(tasks)
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    if len(set(first.hidden)) != 1:
        raise ValueError(f"hidden {first.hidden}: Avalanche's networks need equal widths")
    if name == "packnet" and epochs < 2:
        raise ValueError(f"epochs {epochs}: PackNet needs epochs before and after it prunes")
    avalanche, plugins = _avalanche(), []
    _torch().manual_seed(first.seed)
    features, width, depth = np.shape(first.x)[1], first.hidden[0], len(first.hidden)
    model = avalanche.models.SimpleMLP(first.classes, features, width, depth, drop_rate=0)
    if name == "pnn":
        model = avalanche.models.PNN(depth, features, width)
    elif name == "packnet":
        model = avalanche.packnet.PackNetModel(model)
        pruned = [1 - 1 / left for left in range(count, 0, -1)]  # equal shares of the weights
        plugins = [avalanche.packnet.PackNetPlugin(epochs // 2, pruned)]
    elif name != "derpp":
        model = avalanche.models.as_multitask(model, "classifier")
        make = {
            "ewc": lambda p: p.EWCPlugin(ewc_lambda=1.0),
            "si": lambda p: p.SynapticIntelligencePlugin(si_lambda=1.0),
            "mas": lambda p: p.MASPlugin(lambda_reg=1.0),
            "replay": lambda p: p.ReplayPlugin(mem_size=MEMORY),
            "agem": lambda p: p.AGEMPlugin(MEMORY // max(count - 1, 1), first.batch),
        }.get(name)
        plugins = [make(avalanche.plugins)] if make else []
    marks: list[float] = []
    clock = SimpleNamespace(
        before_training_epoch=lambda *_, **__: marks.append(-time.perf_counter()),
        after_training_epoch=lambda *_, **__: marks.append(time.perf_counter()),
    )
    supervised = avalanche.supervised
    kind, more = supervised.Naive, {}
    if name == "derpp":
        kind, more = supervised.DER, {"mem_size": MEMORY, "alpha": 0.2, "beta": 0.5}
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=first.batch,
        train_epochs=epochs,
        plugins=[*plugins, clock],
        evaluator=None,
        **more,
    )
    streams = [[(_tensor(x), _tensor(y, torch.int64)) for x, y, *_ in s] for s in (tasks, tests)]
    benchmark = avalanche.benchmarks.tensors_benchmark(*streams, task_labels=[*range(count)])
    for task, (x, y) in enumerate(streams[1]):
        marks.clear()
        strategy.train(benchmark.train_stream[task], drop_last=True)
        model.eval()
        with torch.no_grad():
            told = () if name == "derpp" else (torch.full_like(y, task),)
            guess = model(x, *told).argmax(1)
        steps = strategy.clock.train_exp_iterations
        yield steps, sum(marks), (guess == y).float().mean().item()


def study(path: str, names: list[str], seeds: int, epochs: int, hidden: tuple[int, ...]) -> None:
    """Trains methods seed after seed on the tasks of a file, and prints each one's mean accuracy.

    Args:
      path: an .npz with `x0`, `y0`, `test_x0`, `test_y0` of the first task, and so on.
      names: of `STRATEGIES`; or "loop" for plain fine-tuning by `torch_finetune`.
      seeds: how many.
      epochs: passes over a task.
      hidden: widths of the hidden layers.
    """
    with np.load(path) as found:
        arrays = dict(found)
    tasks = [(arrays[f"x{t}"], arrays[f"y{t}"]) for t in range(len(arrays) // 4)]
    tests = [(arrays[f"test_x{t}"], arrays[f"test_y{t}"]) for t in range(len(tasks))]
    classes = 1 + max(int(y.max()) for _, y in tasks)
    for name, seed in itertools.product(names, range(seeds)):
        problems = [Problem(x, y, hidden, classes, seed=seed) for x, y in tasks]
        if name == "loop":
            found = [_one_task(problem, test, epochs) for problem, test in zip(problems, tests)]
        else:
            found = [right for *_, right in avalanche_strategy(name, problems, tests, epochs)]
        print(f"{name}, seed {seed}: {np.mean(found):.4f} just after each task", flush=True)


def _one_task(problem: Problem, test, epochs: int) -> float:
    """A plain loop's accuracy; every task begins anew, which takes as long as going on."""
    loop = torch_finetune(problem)
    for _ in range(epochs):
        loop.run_epoch()
    return float(loop.accuracy(*test))


def main() -> None:
    """Prints the steps per second of every peer that can run here, on MNIST."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--study", help="train the tasks of this file instead; see `study`")
    parser.add_argument("--methods", nargs="+", default=[*STRATEGIES])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400])
    parser.add_argument("--epochs", type=int, default=3, help="of which a loop's fastest counts")
    parser.add_argument("--tasks", type=int, default=5, help="that Avalanche trains")
    parser.add_argument("--compile", action="store_true", help="loops with torch.compile")
    options = parser.parse_args()
    hidden = tuple(options.hidden)
    if options.study:
        study(options.study, options.methods, options.seeds, options.epochs, hidden)
        return
    from jaxcl import data

    runs = available()
    print(*(f"{name}: {reason or 'available'}" for name, reason in runs.items()), sep="\n")
    task = data.mnist().tasks[0]
    (x, y), test = ((part.x / np.float32(255), part.y) for part in (task.train, task.test))
    problem = Problem(x, y, hidden, 10, compile=options.compile)
    for build in (torch_finetune, torch_packnet, torch_hat) if runs["torch"] is None else ():
        loop, rates = build(problem), []
        for _ in range(options.epochs):
            begin = time.perf_counter()
            rates.append(loop.run_epoch() / (time.perf_counter() - begin))
        print(f"{build.__name__:20} {max(rates):6.0f} steps/s, accuracy {loop.accuracy(*test):.4f}")
    for name in STRATEGIES if runs["avalanche"] is None else ():
        tasks, epochs = [problem] * options.tasks, 2 if name == "packnet" else 1
        results = avalanche_strategy(name, tasks, [test] * options.tasks, epochs)
        for number, (steps, seconds, accuracy) in enumerate(results, start=1):
            rate = steps / seconds
            print(f"avalanche {name:8} {number} {rate:6.0f} steps/s, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()

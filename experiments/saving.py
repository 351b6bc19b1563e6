"""What it costs to save: the same study with and without checkpoints on the way, side by side.

    python experiments/saving.py

Two copies of one study take turns, an epoch each, on the same machine; one of them saves after each
of its turns. The difference of their times, of which the medians are taken, is what a save takes
from the training, with the part that is written in the background.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from jaxcl import checkpoint, data, recipes
from jaxcl.cli.options import Run
from jaxcl.study import comparison
from jaxcl.study.events import EpochEnd
from jaxcl.study.pace import Interval, interval
from jaxcl.study.recipes import Options


def turns(benchmark, method: str, options: Options, seeds: int, folder: Path, every: Interval):
    """The seconds of each epoch but the first, in which programs are compiled."""
    run = comparison.begin(recipes.choose(method, options), benchmark, range(seeds), folder=folder)
    comparison.make_room(run)
    course = comparison.advance(run, save_every=every)
    began = time.perf_counter()
    for event, _ in course:
        if isinstance(event, EpochEnd):
            if event.epoch > 1:
                yield time.perf_counter() - began
            began = time.perf_counter()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="What a save costs.")
    parser.add_argument("--benchmark", default="split_digits")
    parser.add_argument("--method", default="packnet")
    parser.add_argument("--network", default="mlp")
    parser.add_argument("--hidden", default="400,400")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=12)
    given = parser.parse_args()
    hidden = tuple(map(int, given.hidden.split(",")))
    options = Options(network=given.network, hidden=hidden, epochs=2 * given.turns + 4)
    benchmark = data.load(given.benchmark, flat=False if given.network != "mlp" else None)
    with tempfile.TemporaryDirectory() as folder:
        each, never = Path(folder) / "each", Path(folder) / "never"
        common = benchmark, given.method, options, given.seeds
        saves, plain = (
            turns(*common, each, Interval(epochs=1)), turns(*common, never, Interval())
        )  # fmt: skip
        pairs = [(next(saves), next(plain)) for _ in range(given.turns)]
        saves.close()
        plain.close()
        newest = checkpoint.latest(each)
        assert newest is not None
        checkpoint_bytes = size(newest[1])
    learner = comparison.begin(recipes.choose(given.method, options), benchmark, range(1)).learner
    leaves = jax.tree.leaves(learner.theta)
    plain_bytes = given.seeds * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    cost = statistics.median(a - b for a, b in pairs)
    usual = interval(Run.save_every).seconds
    assert usual is not None
    found = {
        "device": jax.devices()[0].device_kind,
        "study": vars(given),
        "median_seconds_of_an_epoch": statistics.median(b for _, b in pairs),
        "median_seconds_that_a_save_costs": cost,
        "share_at_the_default_interval": cost / usual,
        "bytes_of_a_checkpoint": checkpoint_bytes,
        "bytes_of_plain_parameters": plain_bytes,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

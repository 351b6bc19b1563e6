"""Small studies, as dicts of the form of `results.json`."""

import numpy as np


def method(ends, best=0.9, capacity=None, tasks=3):
    """Accuracies of one method, a seed for each entry of `ends`.

    Every task is learned to `best`. At the end the earlier ones are at `ends`, so that the method
    forgets `best - ends`; above the diagonal everything is 0.1.
    """
    accuracy = np.full((len(ends), tasks, tasks), 0.1)
    accuracy[:, np.tri(tasks, dtype=bool)] = best
    accuracy[:, -1, :-1] = np.asarray(ends, float)[:, None]
    return {
        "accuracy": accuracy.tolist(),
        "capacity": capacity,
        "parameters": 1234567,
        "extra_bytes": 2048,
        "seconds": 12.34,
        "compilations": 1,
    }


def study(tasks=3, seeds=3, **methods):
    return {
        "benchmark": "digits",
        "tasks": tasks,
        "seeds": list(range(seeds)),
        "settings": {"epochs": np.int64(2), "sizes": (3, 4)},
        "methods": methods,
    }

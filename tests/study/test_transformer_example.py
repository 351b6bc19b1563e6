"""experiments/transformer.py, as small as it can be: its approaches keep what they learned."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["packnet-lora"])
def test_an_approach_over_two_devices_forgets_nothing(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import transformer

    shape = transformer.Shape(layers=2, width=8, heads=2, hidden=16, rank=4)
    settings = dataclasses.replace(
        transformer.Settings(), shape=shape, steps=2, batch=2, length=8, tests=1
    )
    mesh = transformer.mesh_of((2, 1))
    make = transformer.made_on(mesh)
    data = dict(list(transformer.texts().items())[:2])
    params = transformer.network_of(settings, 0, make)
    chosen = transformer.approach(name, settings, len(data), params, make)
    learned = transformer.learn(chosen, settings, mesh, 0, data)
    assert learned.same == [True, True]
    assert np.isfinite(learned.bits).all()

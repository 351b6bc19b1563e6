"""Results from files: the right value or one clear sentence, whatever the file holds."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcl import report
from jaxcl.report import reading
from jaxcl.report.results import Results, Shown, plain, to_json
from tests.report.studies import method, study

SMALL = plain(
    study(
        tasks=2,
        seeds=2,
        finetune=method([0.5, 0.6], tasks=2),
        mine={
            **method([0.9, 0.9], tasks=2, capacity=[[0.1, 0.2]] * 2),
            "measures": {"overlap": [[[0.1, 0.0], [0.0, 0.1]]] * 2},
            "diverged": [None, [2, 1]],
            "shown": Shown("Mine <b>", "mine", "#a1b2c3")._asdict(),
        },
    )
)


def places(content, path=()):
    """The path of every object, list and value."""
    yield path
    listed = dict(enumerate(content)) if isinstance(content, list) else content
    for key, value in listed.items() if isinstance(listed, dict) else ():
        yield from places(value, (*path, key))


PLACES = [path for path in places(SMALL) if path]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 2**63, "0.5", "<script>", "\ud800", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def changed(content, path, value, remove):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@given(st.sampled_from(PLACES), JSON, st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_change_is_a_right_value_or_one_sentence(path, value, remove):
    content = changed(SMALL, path, value, remove)
    try:
        results = reading.from_json(content)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
        assert said.isprintable()
        assert len(said) < 400
        return
    assert len(results.methods) <= 2
    seeds, tasks = len(results.seeds), results.tasks
    for one in results.methods.values():
        assert one.accuracy.shape == (seeds, tasks, tasks)
        seen = one.accuracy[~np.isnan(one.accuracy)]
        assert ((seen >= 0) & (seen <= 1)).all()
        assert len(one.diverged) == seeds
        assert {v.shape for v in one.measures.values()} <= {(seeds, tasks), (seeds, tasks, tasks)}
    for words in (report.sentence(results), report.markdown(results), results._repr_html_()):
        words.encode()
    written = json.dumps(to_json(results), allow_nan=False)
    assert same(reading.from_json(json.loads(written)), results)


def same(a, b):
    return json.dumps(to_json(a)) == json.dumps(to_json(b))


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused_with_its_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json cannot be read as results: "):
        reading.read(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tasks",), 3, r"methods/finetune/accuracy must have shape \(2, 3, 3\) for 2 seeds and 3"),
        (("tasks",), True, "tasks must be a whole number from 1"),
        (("tasks",), 10**9, r"must have shape \(2, 1000000000, 1000000000\)"),
        (("seeds",), [1, 1], "seeds must differ"),
        (("seeds",), [], "at least one seed"),
        (("methods",), {}, "at least one method"),
        (("methods",), [1], "methods must be an object of names and values, got list"),
        (("methods", "mine", "accuracy"), [[[0.5, 0.5]]], "must have shape"),
        (("methods", "mine", "accuracy"), [[0.5], [0.5, 1]], "but its lists differ"),
        (("methods", "mine", "accuracy", 0, 0, 0), 1.5, "finite numbers from 0 to 1, got 1.5"),
        (("methods", "mine", "accuracy", 0, 0, 0), "0.5", "must hold numbers, got '0.5'"),
        (("methods", "mine", "accuracy", 0, 0, 0), True, "must hold numbers, got True"),
        (("methods", "mine", "capacity"), [0.1, 0.2], r"must have shape \(2, 2\)"),
        (("methods", "mine", "parameters"), 1.5, "mine/parameters must be a whole number from 0"),
        (("methods", "mine", "seconds"), "1", "mine/seconds must be a number from 0"),
        (("methods", "mine", "diverged"), [None], "must be a list of 2, one for each seed"),
        (("methods", "mine", "diverged", 1), [0, 1], r"diverged\[1\] must be a whole number"),
        (("methods", "mine", "shown", "color"), "red;}", "color must be of the form #rrggbb"),
        (("methods", "mine", "shown", "role"), "king", "role must be one of method, lower, upper"),
        (("methods", "mine", "shown", "lable"), "x", "no entry 'lable'; the nearest are 'label'"),
        (("chance",), 2, "chance must be a number from 0 to 1"),
        (("benchmark",), "a\nb", r"benchmark must be a line of text, got 'a\\nb'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(path, value, message):
    with pytest.raises(ValueError, match=message):
        reading.from_json(changed(SMALL, path, value, remove=False))


def test_what_is_missing_is_said(tmp_path):
    for path, message in (
        (("benchmark",), "benchmark is missing"),
        (("methods", "mine", "seconds"), "methods/mine/seconds is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            reading.from_json(changed(SMALL, path, None, remove=True))
    with pytest.raises(ValueError, match=r"results\.json does not exist"):
        Results.load(tmp_path)
    with pytest.raises(ValueError, match="holds a sweep, not a comparison"):
        reading.from_json({"combinations": []})


def test_deep_files_are_refused(tmp_path):
    (tmp_path / "results.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="cannot be read as results"):
        Results.load(tmp_path)


def test_from_a_folder_or_a_file(tmp_path):
    written = reading.from_json(SMALL).save(tmp_path / "run")
    for path in (tmp_path / "run", written[0]):
        found = Results.load(path)
        assert isinstance(found, Results)
        assert same(found, reading.from_json(SMALL))
        assert found.methods["mine"].shown.label == "Mine <b>"
        assert found.methods["mine"].diverged == [None, (2, 1)]

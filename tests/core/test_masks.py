"""masks: by path, by magnitude, by attention; counts, bytes, and errors that name the leaf."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcl import masks

PARAMS = {
    "layers": [{"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}],
    "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
}
PATHS = ["head/bias", "head/kernel", "layers/0/bias", "layers/0/kernel"]


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# By path


def test_paths_of_every_kind_of_tree():
    tree = {"a": (jnp.ones(1), [jnp.ones(1)]), "b": Pair(jnp.ones(1), {0: jnp.ones(1)})}
    assert list(masks.leaves_by_path(tree)) == ["a/0", "a/1/0", "b/left", "b/right/0"]
    state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param)
    assert list(masks.leaves_by_path(state)) == ["bias", "kernel"]
    assert sorted(masks.leaves_by_path(PARAMS)) == PATHS
    assert list(masks.leaves_by_path(jnp.ones(1))) == [""]


class Valued(NamedTuple):
    key: jax.Array
    value: jax.Array


def test_only_the_box_of_an_array_has_no_name():
    """`value` is left out where flax boxes an array, and nowhere else."""
    arrays = {
        "w": jnp.ones(2),
        "nested": {"value": jnp.ones(3)},
        "pair": Valued(*[jnp.ones(1)] * 2),
    }
    paths = ["nested/value", "pair/key", "pair/value", "w"]
    assert list(masks.leaves_by_path(arrays)) == paths
    state = nnx.State({name: nnx.Param(array) for name, array in arrays.items()})
    assert list(masks.leaves_by_path(state)) == paths
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((2, 2)), ("a", "b"))}}
    assert list(masks.leaves_by_path(boxed)) == ["dense/kernel"]
    whole = masks.leaves_by_path(state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    assert list(whole) == ["nested", "pair", "w"]

    chosen = masks.by_path(state, [("value$", True), ("", False)])
    assert masks.leaves_by_path(chosen) == dict(zip(paths, [True, False, True, False]))
    mask = {"nested": {"value": True}, "pair": {"key": False, "value": True}, "w": False}
    assert masks.leaves_by_path(masks.expand(mask, state)) == masks.leaves_by_path(mask)
    assert masks.leaves_by_path(masks.expand(chosen, arrays)) == masks.leaves_by_path(chosen)
    with pytest.raises(ValueError, match="no leaf for parameter 'pair/value'"):
        masks.expand({"nested": True, "pair": {"key": True}, "w": True}, arrays)


def test_the_first_pattern_that_matches_wins():
    mask = masks.by_path(PARAMS, [("head/", "h"), ("kernel$", "k"), ("", "rest")])
    assert masks.leaves_by_path(mask) == dict(zip(PATHS, ["h", "h", "rest", "k"]))
    mask = masks.by_path(PARAMS, [("kernel$", "k"), ("head/", "h"), ("", "rest")])
    assert masks.leaves_by_path(mask) == dict(zip(PATHS, ["h", "k", "rest", "k"]))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([("kernel", True)], "No pattern covers parameter 'head/bias'"),
        ([("kernal", True), ("", False)], "'kernal' matches no parameter.*'layers/0/kernel'"),
    ],
)
def test_by_path_errors_name_the_leaf_or_the_pattern(rules, words):
    with pytest.raises(ValueError, match=words):
        masks.by_path(PARAMS, rules)


# Prefix trees


def test_resolve_expands_a_prefix():
    mask = {"layers": False, "head": {"kernel": np.array([True, False]), "bias": 0.5}}
    full = masks.resolve(mask, PARAMS)
    assert jax.tree.structure(full) == jax.tree.structure(PARAMS)
    assert not full["layers"][0]["kernel"].any()
    assert not full["layers"][0]["bias"].any()
    equal(np.broadcast_to(full["head"]["kernel"], (3, 2)), [[True, False]] * 3)
    equal(np.broadcast_to(full["head"]["bias"], 2), [0.5, 0.5])
    equal(jax.tree.map(jnp.all, masks.resolve(True, PARAMS)), jax.tree.map(lambda _: True, PARAMS))


def test_resolve_matches_by_path_across_containers():
    params = {"a": Pair(jnp.ones(2), jnp.ones(3))}
    full = masks.resolve({"a": {"left": True, "right": False}}, params)
    assert isinstance(full["a"], Pair)
    assert full["a"].left.all()
    assert not full["a"].right.any()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"layers": True}, "no leaf for parameter 'head/bias'"),
        ({"layers": True, "head": True, "tail": True}, "'tail' matches no parameter"),
        ({"layers": True, "head": np.ones(3, bool)}, r"'head/bias' has shape \(3,\).*\(2,\)"),
        ({"layers": True, "head": np.ones((1, 1, 2), bool)}, "'head/bias' has shape"),
        ({"layers": True, "head": 2}, "'head/bias' must be bool or float, got int"),
        ({"layers": {"0": True}, "head": {"kernel": True}}, "no leaf for parameter 'head/bias'"),
    ],
)
def test_resolve_errors_name_the_leaf(mask, words):
    with pytest.raises(ValueError, match=words):
        masks.resolve(mask, PARAMS)
    with pytest.raises(ValueError, match=words):
        masks.check_prefix(mask, PARAMS)


def test_attended_is_one_leaf():
    attended = masks.Attended(jnp.array([[0.0], [0.5]]), jnp.array([1.0, 0.25, 0.0]))
    assert masks.is_mask(attended)
    assert not masks.is_mask(attended.source)
    expected = [[1.0, 1.0, 1.0], [0.5, 0.75, 1.0]]
    equal(masks.dense(attended), expected)
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones(3)}
    full = masks.resolve({"w": attended, "v": True}, params)
    equal(full["w"], expected)
    with pytest.raises(ValueError, match=r"'v' has shape \(2, 3\)"):
        masks.resolve(attended, params)


# By magnitude


def reference(value, fraction, among, ties):
    """In plain numpy, one entry after the other."""
    value, among = np.abs(np.asarray(value)).ravel(), np.asarray(among).ravel()
    candidates = [i for i in range(value.size) if among[i]]
    number = round(float(np.float32(fraction)) * len(candidates))
    order = sorted(candidates, key=lambda i: (value[i], i))
    chosen = order[:number]
    if ties == "original" and chosen:
        chosen = [i for i in candidates if value[i] <= value[chosen[-1]]]
    marked = np.zeros(value.size, bool)
    marked[chosen] = True
    return marked


marking = jax.jit(masks.smallest_fraction, static_argnames=("ties", "scope"))
TIED = st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -2.0, 3.0]), min_size=12, max_size=12)
AMONG = st.lists(st.booleans(), min_size=12, max_size=12)
# Shares from which halves arise: n / 2, n / 4, n / 8 of up to 12 entries.
SHARE = st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)


@settings(deadline=None, max_examples=60, database=None)
@given(TIED, AMONG, SHARE, st.sampled_from(["exact", "original"]))
def test_marks_the_smallest(values, among, fraction, ties):
    values = jnp.asarray(values, jnp.float32).reshape(3, 4)
    among = jnp.asarray(among).reshape(3, 4)
    marked = marking(values, fraction, among, ties=ties)
    assert marked.shape == values.shape
    assert marked.dtype == bool
    equal(np.asarray(marked).ravel(), reference(values, fraction, among, ties))


@settings(deadline=None, max_examples=60, database=None)
@given(TIED, AMONG, SHARE)
def test_exactly_the_stated_number(values, among, fraction):
    """round-half-even(fraction * n), whatever the ties, and nothing smaller is left."""
    values, among = np.asarray(values, "f4"), np.asarray(among)
    marked = np.asarray(marking(values, fraction, among))
    assert marked.sum() == round(float(np.float32(fraction)) * int(among.sum()))
    assert not np.any(marked & ~among)
    left = np.abs(values[among & ~marked])
    assert not marked.any() or not left.size or np.abs(values[marked]).max() <= left.min()
    original = np.asarray(marking(values, fraction, among, ties="original"))
    assert np.all(original >= marked)


def by_argsort(values, fraction, among, ties):
    """Leaves that are ranked together, sorted: what `smallest_fraction` does without a sort."""
    size = np.concatenate([np.abs(np.asarray(leaf, "f8")).ravel() for leaf in values])
    among = np.concatenate([np.asarray(leaf).ravel() for leaf in among])
    size = np.where(np.isnan(size), np.inf, np.where(np.isinf(size), 1e306, size))
    order = np.lexsort((size, ~among))  # stable
    number = round(float(fraction) * int(among.sum()))
    marked = np.zeros(size.size, bool)
    marked[order[:number]] = True
    if ties == "original" and number:
        marked = among & (size <= size[order[number - 1]])
    ends = np.cumsum([np.size(leaf) for leaf in values])[:-1]
    return [m.reshape(np.shape(v)) for m, v in zip(np.split(marked, ends), values)]


ENTRY = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf]) | st.floats(width=16)


@settings(deadline=None, max_examples=150, database=None)
@given(
    st.lists(st.tuples(ENTRY, st.booleans()), min_size=17, max_size=17),
    SHARE,
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    st.sampled_from(["exact", "original"]),
    st.sampled_from(["leaf", "global"]),
)
def test_no_sort_is_needed(entries, fraction, dtype, ties, scope):
    entries, among = map(np.array, zip(*entries))
    with jax.enable_x64(dtype == "float64"):
        values = {"a": jnp.asarray(entries[:12].reshape(3, 4), dtype)}
        values["b"] = jnp.asarray(entries[12:], dtype)
        chosen = {"a": among[:12].reshape(3, 4), "b": among[12:]}
        found = marking(values, np.float32(fraction), chosen, ties=ties, scope=scope)
    groups = [["a"], ["b"]] if scope == "leaf" else [["a", "b"]]
    for names in groups:
        both = [values[n] for n in names], np.float32(fraction), [chosen[n] for n in names]
        equal([found[n] for n in names], by_argsort(*both, ties))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_no_ordinary_number_has_its_place(dtype):
    """Zeros of both signs, subnormals, numbers, infinities, NaN of any sign and payload."""
    tiny = jnp.finfo(dtype).smallest_subnormal
    values = np.array([np.nan, np.inf, -1, tiny, -0.0, 0, -tiny, -np.inf, -np.nan], dtype)
    ranks = [7, 5, 4, 2, 0, 1, 3, 6, 8]
    for number in range(10):
        marked = marking(values, np.float32(number / 9))
        equal(marked, np.array(ranks) < number)
    equal(marking(values, 1 / 9, ties="original"), values == 0)
    equal(marking(values, np.float32(8 / 9), ties="original"), np.ones(9, bool))


def test_leaves_of_other_types_are_ranked_together():
    values = {"a": jnp.array([1.0, 3.0], jnp.bfloat16), "b": jnp.array([2, -4])}
    marked = masks.smallest_fraction(values, 0.5, scope="global")
    equal(marked, {"a": np.array([True, False]), "b": np.array([True, False])})


@pytest.mark.parametrize("axes", [("x",), (None, "x")])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_sharded_leaves_are_not_gathered(axes, scope):
    """Only counts travel. Sorting, or a cumulative sum, brings the whole leaf to every device."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    shardings = {"a": jax.NamedSharding(mesh, spec(*axes)), "b": jax.NamedSharding(mesh, spec("x"))}
    sizes = np.round(np.random.default_rng(0).normal(size=1024), 1).astype(np.float32)
    values = {"a": sizes.reshape(32, 32), "b": sizes[::2]}
    placed = jax.device_put(values, shardings)

    def moved(function):
        """The most entries of what is sent between devices."""
        text = jax.jit(function).lower(placed).compile().as_text()
        sent = re.findall(r"= (.*) (?:all-|collective-|reduce-scatter)[a-z-]*\(", text)
        shapes = [shape for result in sent for shape in re.findall(r"\[([0-9,]*)\]", result)]
        return max(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)

    def mark(tree):
        return masks.smallest_fraction(tree, 0.3, scope=scope)

    assert moved(mark) <= 4 * 3
    assert moved(lambda tree: jax.tree.map(lambda leaf: jnp.cumsum(leaf.ravel()), tree)) >= 512
    found = jax.jit(mark)(placed)
    equal(found, mark(values))
    assert found["a"].sharding.is_equivalent_to(shardings["a"], 2)


def test_counts_have_room_for_any_leaf():
    """Neither counts nor places of 2^32 entries fit 32 bits."""
    leaf = jax.ShapeDtypeStruct((2**20, 2**12 + 1), jnp.bfloat16)
    text = marking.lower(leaf, 0.5).as_text()
    counts = re.findall(r"stablehlo.reduce\(.*-> (.*)$", text, re.MULTILINE)
    assert counts and set(counts) == {"(tensor<i64>, tensor<i64>, tensor<i64>)"}
    assert set(re.findall(r"stablehlo.iota.*x(\w+)>", text)) == {"ui64"}
    leaf = jax.ShapeDtypeStruct((2**20, 2**11 - 1), jnp.bfloat16)
    assert set(re.findall(r"iota.*x(\w+)>", marking.lower(leaf, 0.5).as_text())) == {"ui32"}


@pytest.mark.parametrize(
    ("count", "fraction", "number"),
    [(1, 0.5, 0), (3, 0.5, 2), (5, 0.5, 2), (7, 0.5, 4), (10, 0.25, 2), (10, 0.75, 8)],
)
def test_halves_are_rounded_to_even(count, fraction, number):
    assert masks.smallest_fraction(jnp.arange(1.0, count + 1), fraction).sum() == number


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    ("count", "fraction", "number"),
    [(95, 0.3, 28), (95, np.float32(0.3), 29), (45, 0.7, 31), (45, np.float32(0.7), 31)],
)
def test_the_number_is_python_s(count, fraction, number, x64):
    assert number == round(float(fraction) * count)
    with jax.enable_x64(x64):
        values = jnp.arange(1.0, count + 1)
        marked = masks.smallest_fraction(values, fraction)
        assert marked.sum() == number
        traced = jax.jit(masks.smallest_fraction)(values, np.float32(fraction))
        assert traced.sum() == round(float(np.float32(fraction)) * count)


def test_the_number_is_python_s_for_many_shares():
    """The share is chosen by a traced number, as PackNet's is by its task."""
    fractions = np.random.default_rng(0).integers(1, 100, 12) / 100
    sizes = np.arange(1, 200)

    def number(which, size):
        with jax.enable_x64(True):
            fraction = jnp.asarray(fractions)[which]
        among = jnp.arange(sizes[-1]) < size
        return masks.smallest_fraction(jnp.zeros(sizes[-1]), fraction, among).sum()

    table = jax.vmap(jax.vmap(number, (0, None)), (None, 0))
    found = jax.jit(table)(np.arange(len(fractions)), sizes)
    equal(found, [[round(p * int(n)) for p in fractions] for n in sizes])
    assert np.any(found != np.round(np.float32(fractions) * np.float32(sizes)[:, None]))


@pytest.mark.parametrize("ties", ["exact", "original"])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_none_and_all(ties, scope):
    values = {"a": jnp.zeros((2, 3)), "b": jnp.array([1.0, 9.0])}
    among = {"a": jnp.array([[True, False, True]] * 2), "b": jnp.array([False, True])}
    options = {"ties": ties, "scope": scope}
    nothing = masks.smallest_fraction(values, 0.0, among, **options)
    assert masks.count(nothing) == 0
    equal(masks.smallest_fraction(values, 1.0, among, **options), among)
    empty = jax.tree.map(jnp.zeros_like, among)
    assert masks.count(masks.smallest_fraction(values, 1.0, empty, **options)) == 0


def test_ties():
    values = jnp.array([2.0, 1.0, -1.0, 1.0, 3.0])
    exact = masks.smallest_fraction(values, 0.4)
    equal(exact, [False, True, True, False, False])  # the earlier of equals first
    original = masks.smallest_fraction(values, 0.4, ties="original")
    equal(original, [False, True, True, True, False])


def test_scopes():
    values = {"large": jnp.array([10.0, 20.0]), "small": jnp.array([[1.0, -2.0]])}
    leaf = masks.smallest_fraction(values, 0.5)
    equal(leaf, {"large": np.array([True, False]), "small": np.array([[True, False]])})
    both = masks.smallest_fraction(values, 0.5, scope="global")
    equal(both, {"large": np.array([False, False]), "small": np.array([[True, True]])})
    among = {"large": jnp.array([True, False]), "small": jnp.array([[False, True]])}
    both = masks.smallest_fraction(values, 0.5, among, scope="global")
    equal(both, {"large": np.array([False, False]), "small": np.array([[False, True]])})


def test_a_traced_fraction_compiles_once():
    traces = []

    @jax.jit
    def mark(fraction):
        traces.append(None)
        return masks.smallest_fraction(values, fraction)

    values = jnp.array([[3.0, -1.0], [2.0, -4.0]])
    for fraction in (0.0, 0.25, 0.5, 1.0):
        equal(mark(fraction), masks.smallest_fraction(values, fraction))
    assert len(traces) == 1
    rows = jax.vmap(mark)(jnp.array([0.0, 0.5, 1.0]))
    equal(rows.sum((1, 2)), [0, 2, 4])


@pytest.mark.parametrize("fraction", [-0.1, 1.5, np.nan])
def test_a_share_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(ValueError, match=r"fraction must be (finite|at least 0|at most 1), got"):
        masks.smallest_fraction(jnp.ones(3), fraction)


@pytest.mark.parametrize("option", ["ties", "scope"])
def test_unknown_options_are_errors(option):
    with pytest.raises(ValueError, match=f"{option} must be one of .* got 'some'"):
        masks.smallest_fraction(jnp.ones(3), 0.5, **{option: "some"})


# Counts


def test_count_and_capacity():
    mask = {"a": jnp.array([[True, False]]), "b": jnp.array([0.0, 0.5, 1.0])}
    assert masks.count(mask) == 3
    assert float(masks.capacity(mask)) == pytest.approx(3 / 5)
    assert masks.count({}) == 0
    assert masks.capacity({}) == 0
    assert (
        masks.count({"layers": True, "head": {"kernel": False, "bias": 0.5}}, PARAMS) == 6 + 3 + 2
    )
    assert masks.count(True, PARAMS) == 6 + 3 + 6 + 2
    attended = masks.Attended(jnp.array([[1.0], [0.0]]), jnp.array([1.0, 0.0, 1.0]))
    assert masks.count({"w": attended}) == 4
    assert masks.count(attended, {"w": jnp.ones((2, 3))}) == 4
    assert jax.jit(masks.count)(mask) == 3


def test_size_bytes():
    tree = {"a": jnp.ones((2, 3), jnp.uint8), "b": jnp.ones(3, jnp.bfloat16), "c": jnp.ones(())}
    assert masks.size_bytes(tree) == 6 + 6 + 4
    assert masks.size_bytes(jax.eval_shape(lambda: tree)) == 16
    assert masks.size_bytes({}) == 0

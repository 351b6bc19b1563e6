"""A comparison in several scenarios: its parts, its table, and how it goes on."""

import json
import shlex
from contextlib import ExitStack

import jax
import numpy as np
import pytest

import jaxcl
from jaxcl import data
from jaxcl.cli import compare as command_of
from jaxcl.cli import main as cli
from jaxcl.cli.options import Compare
from jaxcl.cli.parsing import parse
from jaxcl.cli.scenarios import divide
from jaxcl.cli.session import load
from jaxcl.report.comparing import chance

pytestmark = pytest.mark.usefixtures("command")

TINY = shlex.split("--benchmark split_digits --tasks 2 --epochs 1 --seeds 2 --hidden 8 --devices 2")


def compare(out, *words):
    words = words if "--methods" in words else ("--methods", "finetune,packnet", *words)
    cli.main(["compare", "--out", str(out), *TINY, *words])
    return out / "split_digits"


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_each_part_is_the_comparison_in_that_scenario_alone(tmp_path, capsys):
    both = compare(tmp_path / "both", "--scenario", "task,class")
    out = capsys.readouterr().out
    files = {"task", "class", "table.md", "scenarios.svg", "scenarios.png"}
    assert {path.name for path in both.iterdir()} == files
    found = {name: results(both / name) for name in ("task", "class")}
    assert [*found["task"]["methods"]] == ["finetune", "packnet"]
    assert [*found["class"]["methods"]] == ["finetune", "packnet"]
    assert (found["task"]["chance"], found["class"]["chance"]) == (0.2, 0.1)
    told = found["class"]["methods"]["finetune"]["accuracy"]
    assert told != found["task"]["methods"]["finetune"]["accuracy"]
    # The command that a part records makes the part again.
    command = json.loads((both / "class" / "settings.json").read_text())["command"]
    words = shlex.split(command)[1:]
    words[words.index("--out") + 1] = str(tmp_path / "alone")
    cli.main(words)
    assert results(tmp_path / "alone" / "class")["methods"]["finetune"]["accuracy"] == told
    # One table, without a wall: a line for each method.
    lines = [line for line in out.splitlines() if line.strip().startswith(("Fine", "Pack"))]
    assert len(lines) == 2 and max(map(len, lines)) <= 80
    assert "†" in lines[1] and "†" not in lines[0]
    page = (both / "table.md").read_text()
    assert "Guessing gives 20.0% (task) and 10.0% (class)." in page
    assert "† Trained told the task, which is then inferred from the input (entropy)." in page
    assert_inferred(both, data.load("split_digits", tasks=2))


def assert_inferred(folder, benchmark):
    """What was written of PackNet, beside a few lines that choose the surest network's answer."""
    found = results(folder / "class")["methods"]["packnet"]
    assert found["inferred"] == "entropy" and found["shown"]["label"] == "PackNet (inferred)"
    accuracy, tasks = np.array(found["accuracy"], float), benchmark.tasks
    assert np.isnan(accuracy[:, 0, 1]).all()  # before it was trained
    told = results(folder / "task")["methods"]["packnet"]
    first = np.array(told["accuracy"], float)[:, 0, 0]
    np.testing.assert_allclose(accuracy[:, 0, 0], first, atol=1e-6)
    assert "inferred" not in told
    differ = False
    for row, seed in enumerate((0, 1)):
        network = jaxcl.load(folder / "task")["packnet"].seed(seed)
        network = network.calibrated([task.val.x[:500] for task in tasks], "entropy")
        temperature, offset = network.calibration
        for k, task in enumerate(tasks):
            z = np.stack([network.logits(task.test.x, t) for t in range(2)])  # [tasks, N, C]
            p = np.exp(z / temperature) / np.exp(z / temperature).sum(-1, keepdims=True)
            chosen = np.argmin((p * -np.log(p)).sum(-1) - offset[:, None], 0)
            answers = z[chosen, np.arange(len(chosen))].argmax(-1)
            right = (5 * chosen + answers) == (5 * k + task.test.y)  # of all ten classes
            np.testing.assert_allclose(accuracy[row, 1, k], right.mean(), atol=1e-6)
            differ |= right.mean() != (answers == task.test.y).mean()
    assert differ  # the broken twin, which does not ask for the task


def test_a_method_that_is_told_the_task_infers_it_where_nobody_tells_it(tmp_path):
    """Trained once in the part "task", which nobody has to ask for."""
    words = ["--scenario", "class,domain", "--methods", "packnet", "--seeds", "1"]
    folder = compare(tmp_path, *words)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"task", "class", "domain"}
    assert not (folder / "class" / "checkpoints").exists()
    wide, narrow = (
        np.array(results(folder / name)["methods"]["packnet"]["accuracy"], float)[:, 1].mean()
        for name in ("domain", "class")
    )
    assert wide > narrow  # the class within its task counts, of whichever task it is taken
    shares = results(folder / "domain")["methods"]["packnet"]["measures"]["task_inferred"]
    assert shares[0][0] == 1 and narrow <= shares[0][1] < 1


def test_a_scenario_in_which_every_task_is_inferred_grows_by_seeds(tmp_path):
    """It has settings and no checkpoints, so that nothing of it is to be trained."""

    def planned(seeds, held):
        words = ["compare", *TINY, "--methods", "packnet", "--scenario", "class", "--out"]
        command = parse([*words, str(tmp_path), "--seeds", seeds, "--resume"])
        assert isinstance(command, Compare)
        part = divide(command, tmp_path)[tmp_path / "class"]
        benchmark = load(command.run, command.training)
        made = command_of.plan(part, benchmark, jax.devices()[:1], tmp_path / "class")
        return command_of._taken(made, held), benchmark

    with ExitStack() as held:
        planned("1", held)
        (tmp_path / "class" / "results.json").write_text("{}")
    with ExitStack() as held:
        plan, benchmark = planned("2", held)
        assert plan.growth and not plan.runs and plan.growth.words == ""
        command_of._grown(plan, benchmark, jax.devices()[:1])
    assert {path.name for path in (tmp_path / "class").iterdir()} == {"settings.json"}
    settings = json.loads((tmp_path / "class" / "settings.json").read_text())["settings"]
    assert settings["seeds"] == 2 and settings["methods"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--benchmark split_digits,classes=0-1/2-4 --scenario domain", "they have 2, 3"),
        ("--benchmark split_digits --scenario class --tune", "packnet is trained in the scenario"),
    ],
)
def test_what_cannot_be_inferred_is_said_before_training(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--methods", "packnet", "--out", str(tmp_path), *shlex.split(words)])
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not [*tmp_path.rglob("*")]


def test_resume_trains_no_more_than_is_missing(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        import jaxcl.cli.compare as command

        trained = command._trained

        def stop(plan, *args, **kwargs):
            if plan.place.settings["scenario"] == "class":
                raise KeyboardInterrupt
            return trained(plan, *args, **kwargs)

        patch.setattr(command, "_trained", stop)
        with pytest.raises(SystemExit):
            compare(tmp_path, "--scenario", "task,class")
    folder = tmp_path / "split_digits"
    assert not (folder / "table.md").exists()
    with pytest.raises(SystemExit):
        compare(tmp_path, "--scenario", "task,class")
    assert "unfinished run; add --resume" in capsys.readouterr().err
    at = (folder / "task" / "checkpoints" / "packnet" / "task_2").stat().st_mtime_ns
    compare(tmp_path, "--scenario", "task,class", "--resume")
    assert (folder / "task" / "checkpoints" / "packnet" / "task_2").stat().st_mtime_ns == at
    assert (folder / "table.md").exists()


def test_a_run_in_one_scenario_is_not_written_over(tmp_path, capsys):
    compare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        compare(tmp_path, "--scenario", "task,class")
    assert "holds a run in one scenario" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_data_that_changed_since_the_run_was_started(tmp_path, capsys):
    x, y = np.random.default_rng(0).integers(0, 9, (60, 4)).astype(np.uint8), np.arange(60) % 4
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    words = shlex.split(
        f"compare --methods finetune --benchmark split_npz:{tmp_path}/mine.npz --tasks 2 --epochs 1"
        f" --seeds 1 --hidden 4 --devices 1 --out {tmp_path}/runs --name mine"
    )
    cli.main(words)
    stored = results(tmp_path / "runs" / "mine")["settings"]["data"]
    assert stored["identifier"].startswith(f"split_npz:{tmp_path}/mine.npz,tasks=2")
    assert stored["sets"][0]["sizes"] == [36, 12, 12]
    x += 1  # which changes their mean, too
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*words, "--resume"])
    said = capsys.readouterr().err
    assert "on other data: checksum of the set mine is" in said and said.count("\n") == 1


def test_chance_counts_the_classes_that_compete():
    benchmark = data.load("split_digits,classes=0-1/2-5/6-9")
    assert chance(benchmark, "class") == 0.1
    assert chance(benchmark, "task") == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)


def test_the_folder_of_a_name_with_a_path_is_one_name(tmp_path, monkeypatch):
    from jaxcl.cli.options import Run
    from jaxcl.cli.session import folder_of

    run = Run(benchmark="split_npz:/a/b/mine.npz,order=1", out=tmp_path)
    folder = folder_of(run, usual=run.benchmark)
    assert folder == tmp_path / "split_npz_a_b_mine.npz,order=1"

"""`jaxcl report`: one file, or one sentence and nothing."""

import pytest

from jaxcl.cli import main as cli
from tests.cli import runs
from tests.cli.runs import refused, snapshot


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs side by side, which no test may change."""
    root = tmp_path_factory.mktemp("folders")
    runs.finished(root / "one")
    runs.finished(root / "class", scenario="class")
    runs.unfinished(root / "begun")
    return root


def test_writes_one_page(tmp_path, capsys):
    one, two = runs.finished(tmp_path / "one"), runs.finished(tmp_path / "two", epochs=3)
    cli.main(["report", str(one), str(two), "-o", str(tmp_path / "page.html")])
    assert "HAT (two)" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"Written to {tmp_path / 'page.html'} (" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "page.html"}


def test_an_unfinished_run_has_a_page_too(tmp_path):
    cli.main(["report", str(runs.unfinished(tmp_path / "begun")), "-o", str(tmp_path / "p.html")])
    assert "is not finished" in (tmp_path / "p.html").read_text()


def test_a_run_in_several_scenarios_is_one_page(tmp_path, capsys):
    for name in ("task", "class"):
        runs.finished(tmp_path / "both" / name, scenario=name)
    cli.main(["report", str(tmp_path / "both"), "-o", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.index("task: accuracy") < text.index("class: accuracy")
    runs.finished(tmp_path / "one")
    message = refused(capsys, "report", tmp_path / "one", tmp_path / "both")
    assert "both is a run in several scenarios; report it alone, or give its parts: " in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report"], "there is nothing to report; give a folder"),
        (["report", "on"], "there is no folder on; the nearest are 'one'"),
        (["report", "one", "begun"], "the run begun is not finished, so nothing compares with it"),
        (["report", "one", "class"], "fit together: scenario is 'task' in the one and 'class'"),
        (["report", "one", "--output", "page.pdf"], "--output must end in .html, got 'page.pdf'"),
        (["report", "one", "--output", "no/page.html"], "no/page.html: No such file or directory"),
    ],
)  # fmt: skip
def test_refused(words, message, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = snapshot(folders)
    assert message in refused(capsys, *words)
    assert snapshot(folders) == before


def test_a_missing_library_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    message = refused(capsys, "report", runs.finished(tmp_path / "one"))
    assert 'pip install "jaxcl[report]"' in message

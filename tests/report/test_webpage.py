"""The web page of a report: what is in it, what cannot get into it, and how a browser takes it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxcl import report
from jaxcl.report.runs import open_parts, open_run
from jaxcl.report.webpage import page, scenarios_page
from jaxcl.study import checkpoint
from tests.cli import runs
from tests.report.studies import method

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes, text)."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data

    def of(self, tag):
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def data_of(text, name="data"):
    elements = Elements(text).of("script")
    return json.loads(next(text for attributes, text in elements if attributes.get("id") == name))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The page of a finished run, as text."""
    overlap = np.array([np.eye(3) * 0.2] * 3).tolist()
    hat = method([0.9, 0.89, 0.9], capacity=[[0.2, 0.4, 0.5]] * 3)
    found = runs.results(
        finetune=method([0.5, 0.6, 0.7]),
        joint=method([0.91] * 3, best=0.91),
        hat={**hat, "measures": {"overlap": overlap}},
    )
    return page([open_run(runs.finished(tmp_path_factory.mktemp("runs") / "one", found))])


def test_it_says_what_was_run_and_found(finished):
    headings = [text.strip() for _, text in Elements(finished).of("h2")]
    assert headings == [
        "Results", "Accuracy over the sequence", "Accuracy matrices", "Forgetting and transfer",
        "Capacity", "Memory and time", "Paired differences", "What was run", "Settings", "Data",
    ]  # fmt: skip
    for words in ("Fine-tuning forgets 30.0 points", "jaxcl compare --name one", "jax 0.10.2"):
        assert words in finished
    assert "2 x cpu" in finished
    links = {attributes["href"][1:] for attributes, _ in Elements(finished).of("a")}
    assert links == {attributes["id"] for attributes, _ in Elements(finished).of("section")}


def test_the_numbers_are_in_it(finished):
    data = data_of(finished)
    cells = [dict(zip(data["cells"]["columns"], row)) for row in data["cells"]["rows"]]
    assert len(cells) == 3 * 3 * 9
    [last] = [
        c["accuracy"] for c in cells
        if (c["method"], c["seed"], c["after"], c["task"]) == ("Fine-tuning", 2, 3, 1)
    ]  # fmt: skip
    assert last == 70
    assert len(data["pairs"]["rows"]) == 3
    means = [dict(zip(data["means"]["columns"], row)) for row in data["means"]["rows"]]
    [end] = [m for m in means if (m["method"], m["task"], m["after"]) == ("Fine-tuning", 0, 3)]
    row = report.summary(runs.results(finetune=method([0.5, 0.6, 0.7])))[0]
    assert end["accuracy"] == pytest.approx(100 * row.accuracy.mean, abs=1e-3)
    assert end["low"] == pytest.approx(
        100 * (row.accuracy.mean - row.accuracy.half_width), abs=1e-3
    )
    known = {*data, "sequence"}
    charts = data_of(finished, "charts")
    assert {*re.findall(r'"data": ?\{"name": ?"(\w+)"', json.dumps(charts))} <= known


def test_nothing_but_the_page_is_asked_for(finished):
    """The policy forbids it, and there is nothing to ask for."""
    [policy] = [a for a, _ in Elements(finished).of("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy["content"]
    assert "connect-src" not in policy["content"]
    for tag, attributes, _ in Elements(finished).found:
        assert tag not in ("link", "iframe", "img", "object", "embed")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_the_same_run_gives_the_same_page(finished, tmp_path):
    folder = runs.finished(tmp_path / "same")
    assert page([open_run(folder)]) == page([open_run(folder)])


EVIL = "</script><script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>"


def test_names_are_escaped(tmp_path):
    one = {**method([0.9] * 3), "shown": {"label": EVIL, "words": EVIL}}
    found = runs.results(evil=one, finetune=method([0.5, 0.6, 0.7]))._replace(benchmark=EVIL)
    folder = runs.finished(tmp_path / "one", found, benchmark=EVIL, extra={"<b>": EVIL})
    text = page([open_run(folder)])
    elements = Elements(text)
    assert len(elements.of("script")) == 3
    assert not elements.of("img")
    assert not elements.of("b")
    assert data_of(text)["cells"]["rows"][0][0] == EVIL


def test_an_unfinished_run_says_so(tmp_path):
    text = page([open_run(runs.unfinished(tmp_path / "begun"))])
    for words in ("This run is not finished", "2 of 3", "0 of 3", "jaxcl compare --name begun"):
        assert words in text
    assert "The checkpoints of Fine-tuning cannot be read, so their numbers are missing." in text
    assert not Elements(text).of("script")
    folder = runs.unfinished(tmp_path / "new", done=0)
    assert "No method has learned its first task yet" in page([open_run(folder)])


def test_an_unfinished_run_shows_what_its_checkpoints_hold(tmp_path):
    accuracy = np.full((3, 3, 3), np.nan, np.float32)
    accuracy[:, 0, 0], accuracy[:, 1, :2] = 0.9, [[0.6, 0.8], [0.7, 0.9], [0.8, 1.0]]
    held = {"accuracy": accuracy, "cursor": {"task": np.int32(2)}, "learners": np.ones(4)}
    held["diverged"] = np.array([[0, 0], [0, 0], [2, 1]], np.int32)
    folder = runs.unfinished(tmp_path / "begun", done=0)
    checkpoints = folder / "checkpoints" / "hat"
    checkpoint.save(checkpoints / "task_2", held)
    (checkpoints / "task_2_epoch_1").mkdir()  # passed over: what is on the way to task 2 is older
    (checkpoints / "task_3_epoch_4").mkdir()  # passed over: it cannot be read
    text = page([open_run(folder)])
    start = text.index("This run is not finished")
    rows = [
        " ".join(re.sub(r"<[^>]*>", " ", row).split())
        for row in text[start : text.index("What was run")].split("</tr>")
    ]
    assert "Fine-tuning 0 of 3 - -" in rows
    assert "HAT* 2 of 3 75.0 ± 63.5 25.0 ± 63.5" in rows
    assert "HAT 0 2 of 3 70.0 60.0 80.0" in rows
    assert "HAT 2 (diverged) 2 of 3 90.0 80.0 100.0" in rows
    assert "The newest checkpoints of HAT cannot be read; the numbers are those" in text


def test_runs_become_one_comparison(tmp_path):
    one = runs.finished(tmp_path / "one", runs.results(seeds=3))
    two = runs.finished(tmp_path / "two", runs.results(seeds=2, hat=method([0.8, 0.7])), epochs=9)
    text = page([open_run(one), open_run(two)])
    labels = {row[0] for row in data_of(text)["cells"]["rows"]}
    assert labels == {"Fine-tuning", "HAT (one)", "HAT (two)"}
    assert "Left out, because not every run has them: seeds 2." in text
    settings = text[text.index("Settings</h2>") :]
    assert '<th scope="row">epochs</th><td class="best">2</td><td class="best">9</td>' in settings
    assert '<th scope="row">scenario</th><td>task</td><td>task</td>' in settings


def test_runs_that_do_not_fit_are_refused(tmp_path):
    one = open_run(runs.finished(tmp_path / "one"))
    begun = open_run(runs.unfinished(tmp_path / "begun"))
    with pytest.raises(ValueError, match="the run begun is not finished, so nothing compares"):
        page([one, begun])
    with pytest.raises(ValueError, match="two runs are called one"):
        page([one, one])


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The page of a comparison in three scenarios, of which one is unfinished; as text."""
    root = tmp_path_factory.mktemp("runs") / "both"
    told = runs.results(finetune=method([0.5, 0.6, 0.7]), hat=method([0.9, 0.89, 0.9]))
    some = {**method([0.4, 0.5, np.nan]), "diverged": [None, None, [2, 1]]}
    blind = runs.results(finetune=method([0.2, 0.3, 0.4], best=0.8), er=some)
    runs.finished(root / "task", told, scenario="task")
    runs.finished(root / "class", blind, scenario="class")
    runs.unfinished(root / "domain", done=0)
    return scenarios_page("both", open_parts(root))


def test_scenarios_stand_side_by_side(three):
    table = three[three.index("Results</h2>") : three.index('class="chips"')]
    for words in ("task: accuracy (%)", "class: forgetting (points)", "89.8 ± ", "In bold: the"):
        assert words in table
    assert re.search(r"60.0 ± [\d.]+\*", table) and "class: * ER diverged: seed 2" in table
    assert table.count("<tr>") == 4  # a header and three methods, of which each scenario has two
    assert len(re.findall(r"<td[^>]*>-</td>", table)) == 4
    assert "run both in the scenarios task, domain and class" in three
    assert "This run is not finished: domain" in three
    for sentence in ("task:</strong> Fine-tuning forgets", "class:</strong> Fine-tuning forgets"):
        assert sentence in three
    places = [attributes.get("id") for attributes, _ in Elements(three).of("div")]
    assert {"sequence-task", "sequence-class", "matrix1-task"} <= {*places}
    assert "matrix2-task" not in places


def test_the_charts_of_a_scenario_read_its_rows_alone(three):
    rows = [dict(zip(t["columns"], row)) for t in [data_of(three)["cells"]] for row in t["rows"]]
    assert {(r["scenario"], r["method"]) for r in rows} == {
        ("task", "Fine-tuning"), ("task", "HAT"), ("class", "Fine-tuning"), ("class", "ER"),
    }  # fmt: skip
    for chart in data_of(three, "charts"):
        only = {"filter": {"field": "scenario", "equal": chart["scenario"]}}
        reading = [part for part in parts_of(chart["spec"]) if "data" in part]
        assert reading and all(part["transform"][0] == only for part in reading)


def parts_of(spec):
    """All objects of a specification."""
    children = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    return [spec] * isinstance(spec, dict) + [part for c in children for part in parts_of(c)]


def test_diverged_seeds_and_unknown_numbers(tmp_path):
    gone = {**method([np.nan] * 3), "diverged": [[1, 1]] * 3}
    some = {**method([0.9, 0.9, np.nan]), "diverged": [None, None, [2, 1]]}
    text = page([open_run(runs.finished(tmp_path / "one", runs.results(hat=some, pnn=gone)))])
    assert "HAT diverged: seed 2 in task 2, epoch 1" in text
    assert "NaN" not in json.dumps(data_of(text))


def test_one_seed_one_task(tmp_path):
    found = runs.results(seeds=1, hat=method([0], tasks=3))
    text = page([open_run(runs.finished(tmp_path / "one", found))])
    assert "Paired differences" not in text


def test_vl_convert_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    run = open_run(runs.finished(tmp_path / "one"))
    with pytest.raises(ImportError, match=r'vl_convert.*pip install "jaxcl\[report\]"'):
        page([run])


# In a browser

# In the page's head, so that it hears what the page's own script does first.
LISTENERS = """<script>
const seen = {errors: [], tips: []};
window.addEventListener("error", (event) => seen.errors.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (e) => seen.errors.push(e.blockedURI));
</script>"""
PROBE = """<script type="module">
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
while (document.documentElement.dataset.drawn !== "yes") await wait(20);
const table = document.querySelector("#table table");
const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const button = table.tHead.rows[0].cells[1].querySelector("button");
seen.before = first();
button.focus();
button.click();
seen.up = first();
seen.sorted = button.closest("th").getAttribute("aria-sort");
button.click();
seen.down = first();
const rows = () => document.querySelectorAll("#sequence svg .mark-line path").length;
seen.lines = rows();
const chip = document.querySelector(".chips button");
chip.click();
await wait(100);
seen.without = rows();
seen.pressed = chip.getAttribute("aria-pressed");
const select = document.querySelector("#matrices select");
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = () => all("#matrix0 svg .mark-text.role-mark text").map((text) => text.textContent);
seen.mean = texts();
select.value = "2";
select.dispatchEvent(new Event("change"));
await wait(100);
seen.seed = texts();
for (const point of document.querySelectorAll("#sequence svg .mark-symbol path")) {
  const box = point.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
  point.dispatchEvent(new PointerEvent("pointerover", at));
  point.dispatchEvent(new PointerEvent("pointermove", at));
  await wait(5);
  const tip = document.querySelector("#vg-tooltip-element");
  if (tip) seen.tips.push(tip.innerText.replace(/\\s+/g, " "));
}
let saved = null;
URL.createObjectURL = (blob) => { saved = blob; return "#"; };
document.querySelector('button[data-table="table"]').click();
seen.csv = await saved.text();
seen.svgs = document.querySelectorAll(".chart svg.marks").length;
seen.charts = document.querySelectorAll(".chart").length;
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
const named = (svg) => svg.closest("[aria-label]") || svg.querySelector("[aria-label]");
seen.unnamed = all(".chart svg.marks").filter((svg) => !named(svg)).length;
const out = document.createElement("output");
out.id = "probe";
out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>"""


def browse(text, tmp_path, width):
    """What the probe sees, and what the browser's console and network log say."""
    path, log = tmp_path / f"page{width}.html", tmp_path / f"net{width}.json"
    start, _, end = text.rpartition("</body>")
    text = f"{start}{PROBE}</body>{end}".replace("</head>", f"{LISTENERS}</head>", 1)
    path.write_text(text, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},900",
        f"--user-data-dir={tmp_path / f'profile{width}'}", f"--log-net-log={log}",
        "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    for _ in range(4):  # on a busy machine the browser may hand over the page before it is ready
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        found = re.search(r'<output id="probe">(.*?)</output>', run.stdout, re.DOTALL)
        if found:
            break
    assert found, run.stderr[-2000:]
    import html

    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(r'"url":"(https?://[^"]*)"', log.read_text(errors="replace"))
    return json.loads(html.unescape(found[1])), console, asked


if CHROMIUM:  # which .ci/run installs

    @pytest.mark.parametrize("width", [375, 1440])
    def test_in_chromium(finished, width, tmp_path):
        seen, console, asked = browse(finished, tmp_path, width)
        assert seen["errors"] == []
        assert console == []
        assert seen["requests"] == []
        assert [
            url for url in asked if not re.search(r"google|gvt1", url)
        ] == []  # the browser's own errands
        assert seen["before"] == ["Fine-tuning", "Joint", "HAT"]
        assert seen["up"] == ["Fine-tuning", "HAT", "Joint"]
        assert seen["down"] == seen["up"][::-1]
        assert seen["sorted"] == "ascending"
        assert (seen["lines"], seen["without"], seen["pressed"]) == (3, 2, "false")
        assert seen["svgs"] == seen["charts"] > 5
        assert seen["unnamed"] == 0
        assert seen["mean"][-3:] == ["60", "60", "90"]
        assert seen["seed"][-3:] == ["70", "70", "90"]
        tips = " | ".join(seen["tips"])
        assert re.search(r"method HAT seed 1 after task 3 accuracy \(%\) 89\.3", tips), tips[:500]
        assert seen["csv"].splitlines()[0].startswith("method,label,accuracy,")
        assert len(seen["csv"].splitlines()) == 4
        assert not seen["wide"]  # nothing to scroll sideways but tables

    def test_scenarios_in_chromium(three, tmp_path):
        seen, console, _ = browse(three, tmp_path, 375)
        assert (seen["errors"], console, seen["requests"]) == ([], [], [])
        assert seen["svgs"] == seen["charts"] > 10
        assert not seen["wide"]

    def test_the_browser_test_bites(finished, tmp_path):
        """The broken twin: a page that asks for another file, and one that fails."""
        start, _, end = finished.rpartition("drawAll();")
        bad = "drawAll(); fetch('https://example.org/data').catch(() => 0); nothing.at.all;"
        seen, console, _ = browse(f"{start}{bad}{end}", tmp_path, 1440)
        assert any("example.org" in error for error in seen["errors"])
        assert any("nothing is not defined" in line for line in console)
        assert len(console) >= 2


def measured(seeds, tasks=3):
    """What `inferred.json` holds of one method."""
    told, right = [[0.9, 0.8, 0.7], [0.5, 0.7, 0.6]]
    values = {"told": told, "inferred": right, "classes": [0.6, 0.8, 0.7]}
    of_rule = {key: [each[:tasks]] * seeds for key, each in values.items()}
    of_rule["confusion"] = [np.full((tasks, tasks), 0.25).tolist()] * seeds
    return {"methods": {"hat": {"energy": of_rule}}}


def test_the_task_inferred_is_shown_where_it_was_measured(tmp_path):
    folder = runs.finished(tmp_path / "one")
    content = measured(seeds=3)
    (folder / "inferred.json").write_text(json.dumps(content))
    text = page([open_run(folder)])
    shown = text[text.index("Task inference</h2>") : text.index("What was run</h2>")]
    for words in ("energy", "80.0 ± 0.0", "60.0 ± 0.0", "70.0 ± 0.0", "25.0 ± 0.0"):
        assert words in shown
    content["methods"]["hat"]["energy"]["told"] = [[2.0, 0.8, 0.7]] * 3
    (folder / "inferred.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"inferred\.json cannot be read: hat/energy/told must hold"
    ):
        open_run(folder)
    (folder / "inferred.json").write_text('{"methods": {"hat": 3}}')
    with pytest.raises(ValueError, match=r"inferred\.json does not hold what jaxcl infer writes"):
        open_run(folder)


@pytest.mark.parametrize(("seeds", "tasks"), [(2, 3), (3, 2)])
def test_what_was_inferred_of_less_than_the_run_is_left_out(seeds, tasks, tmp_path):
    folder = runs.finished(tmp_path / "one")
    (folder / "inferred.json").write_text(json.dumps(measured(seeds, tasks)))
    text = page([open_run(folder)])
    assert "before the run had all its seeds and tasks is left out; <code>jaxcl infer" in text
    assert "energy" not in text

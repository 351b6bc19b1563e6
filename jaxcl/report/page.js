// The page's script: charts by Vega-Lite, sorting, controls and downloads. Needs no network.
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const tables = read("data");
const charts = read("charts");
const views = new Map();
const hidden = new Set();
const signals = {};
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// {columns, rows} to objects
const rowsOf = ({ columns, rows }) =>
  rows.map((row) => Object.fromEntries(row.map((value, i) => [columns[i], value])));
const datasets = Object.fromEntries(
  Object.entries(tables).map(([name, table]) => [name, rowsOf(table)]));
datasets.sequence = sequence(datasets.cells ?? []);

// What single seeds reach on each task once it is trained, and on average on those so far (task 0).
// A page of several scenarios names them in each row.
function sequence(cells) {
  const seen = cells.filter(({ task, after }) => task <= after);
  const groups = new Map();
  for (const { scenario, method, seed, after, accuracy } of seen) {
    const key = JSON.stringify([scenario, method, seed, after]);
    const group = groups.get(key) ?? { scenario, method, seed, after, task: 0, count: 0, accuracy: 0 };
    groups.set(key, { ...group, count: group.count + 1, accuracy: group.accuracy + accuracy });
  }
  const whole = [...groups.values()].filter(({ count, after }) => count === after);
  return [...whole.map((row) => ({ ...row, accuracy: row.accuracy / row.count })), ...seen];
}

// Colors keep a contrast of 3 to 1 with the paper.
function luminance([r, g, b]) {
  const linear = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
}
function visible(color) {
  let rgb = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const paper = dark.matches ? 0.009 : 1;
  if (dark.matches && Math.max(...rgb) - Math.min(...rgb) < 12) rgb = rgb.map((v) => 255 - v); // greys
  const toward = dark.matches ? 255 : 0;
  const contrast = () => {
    const [low, high] = [luminance(rgb), paper].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  for (let i = 0; i < 30 && contrast() < 3; i++) rgb = rgb.map((v) => v + (toward - v) * 0.1);
  return "#" + rgb.map((v) => Math.round(v).toString(16).padStart(2, "0")).join("");
}
function colored(spec) {
  return JSON.parse(JSON.stringify(spec), (key, value) =>
    key === "range" && Array.isArray(value) ? value.map(visible) : value);
}

const config = {
  background: null, font: "system-ui, sans-serif", view: { stroke: null },
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", domainColor: "#8888", tickColor: "#8888",
    gridColor: "#8883", titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12,
  },
};
const options = {
  renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false },
  tooltip: { theme: "custom" },
};

async function draw(chart) {
  const [id, title] = chart.scenario
    ? [`${chart.name}-${chart.scenario}`, `${chart.title} (${chart.scenario})`] : [chart.name, chart.title];
  const element = document.getElementById(id);
  const names = new Set(JSON.stringify(chart.spec).match(/"data":\{"name":"(\w+)"/g) || []);
  const used = Object.keys(datasets).filter((name) => names.has(`"data":{"name":"${name}"`));
  const spec = colored({
    ...chart.spec, width: "container", autosize: { type: "fit-x", contains: "padding" }, config,
    description: `${title}. ${chart.words}`,
  });
  spec.datasets = Object.fromEntries(used.map((name) => [name, datasets[name]]));
  views.get(id)?.finalize();
  const { view } = await vegaEmbed(element, spec, options);
  views.set(id, view);
  set(view, "hidden", [...hidden]);
  for (const [name, value] of Object.entries(signals)) set(view, name, value);
  await view.runAsync();
}
function set(view, name, value) {
  try { view.signal(name, value); } catch { /* a chart without this signal */ }
}
function everywhere(name, value) {
  for (const view of views.values()) { set(view, name, value); view.runAsync(); }
}

// Methods are switched on and off in all charts at once.
function paint() {
  for (const chip of document.querySelectorAll(".chips button")) {
    chip.style.setProperty("--chip", visible(chip.dataset.color));
  }
}
for (const chip of document.querySelectorAll(".chips button")) {
  chip.addEventListener("click", () => {
    const name = chip.dataset.method;
    if (!hidden.delete(name)) hidden.add(name);
    chip.setAttribute("aria-pressed", String(!hidden.has(name)));
    everywhere("hidden", [...hidden]);
  });
}
for (const control of document.querySelectorAll("select[data-signal]")) {
  const chosen = () => {
    const value = control.value;
    signals[control.dataset.signal] = value !== "" && !isNaN(value) ? Number(value) : value;
    everywhere(control.dataset.signal, signals[control.dataset.signal]);
  };
  control.addEventListener("change", chosen);
}

// Tables are sorted by the numbers that their cells carry.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Every table of numbers can be saved as CSV.
function csv({ columns, rows }) {
  const cell = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
for (const button of document.querySelectorAll("button[data-table]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(tables[button.dataset.table])], { type: "text/csv" }));
    link.download = `${button.dataset.table}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

async function drawAll() {
  paint();
  for (const chart of charts) await draw(chart);
  document.documentElement.dataset.drawn = "yes";
}
dark.addEventListener("change", drawAll);
drawAll();

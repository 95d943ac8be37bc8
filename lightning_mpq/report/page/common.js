"use strict";
// What both pages share: reading the data, making elements, showing numbers, tables and figures.

async function readData() {
  const element = document.getElementById("data");
  if (element.type === "application/json") return JSON.parse(element.textContent);
  const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// An element with attributes and children; text is always text, never markup.
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

// As the tables on the terminal have it: four digits that mean something.
function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size < 1e-4 ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
}

const signed = (value) => (known(value) && value > 0 ? "+" : "") + number(value);
const megabytes = (bytes) => (known(bytes) ? (bytes < 1e5 ? `${number(bytes / 1e3)} kB` : `${number(bytes / 1e6)} MB`) : "–");
const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// A table; columns are [title, row => value, "number" | "text"].
function table(caption, rows, columns, marked = () => false) {
  const kind = (column) => (column[2] === "number" ? "number" : null);
  const head = el("tr", {}, columns.map((column) => el("th", { scope: "col", class: kind(column) }, column[0])));
  const body = rows.map((row) => el("tr", { class: marked(row) ? "chosen" : null }, columns.map((column, at) => {
    const value = column[1](row);
    const shown = value instanceof Node ? value : typeof value === "number" ? number(value) : String(value ?? "–");
    return el(at === 0 ? "th" : "td", { class: kind(column), scope: at === 0 ? "row" : null }, shown);
  })));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body)));
}

function folded(summary, ...content) {
  return el("details", {}, el("summary", {}, summary), ...content);
}

// A drawing that a screen reader hears as one sentence; its numbers stand in a table beside it.
function drawing(label, options) {
  const width = Math.min(1100, Math.max(300, document.getElementById("main").clientWidth - 24));
  const plot = Plot.plot({ width, ariaLabel: label, style: { background: "transparent" }, ...options, width: options.width ?? width });
  const svg = plot.tagName.toLowerCase() === "svg" ? plot : plot.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.querySelectorAll("g[aria-label]").forEach((group) => group.removeAttribute("aria-label")); // an image has no parts
  return plot;
}

function figure(caption, ...content) {
  return el("figure", {}, ...content, el("figcaption", {}, caption));
}

function section(id, title, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...content);
}

// Values of which nothing is known beforehand, as what they look like: tables, lists of names, or text.
function anything(caption, value) {
  if (Array.isArray(value) && value.length && value.every((row) => row && typeof row === "object" && !Array.isArray(row))) {
    const names = [...new Set(value.flatMap(Object.keys))];
    const plain = (cell) => (cell !== null && typeof cell === "object" ? JSON.stringify(cell) : cell);
    return table(caption, value, names.map((name) => [words(name), (row) => plain(row[name]), value.some((row) => known(row[name])) ? "number" : "text"]));
  }
  if (value && typeof value === "object" && !Array.isArray(value)) {
    const simple = Object.entries(value).filter(([, each]) => each === null || typeof each !== "object");
    const deep = Object.entries(value).filter(([, each]) => each !== null && typeof each === "object");
    return el("div", {},
      simple.length ? table(caption, simple, [["name", (row) => words(row[0])], ["value", (row) => row[1], "text"]]) : null,
      deep.map(([name, each]) => [el("h3", {}, words(name)), anything(words(name), each)]));
  }
  return el("p", {}, typeof value === "object" ? JSON.stringify(value) : String(value));
}

const words = (name) => String(name).replaceAll("_", " ");

// Scales of losses: logarithmic where all are positive.
function lossScale(values, label) {
  const numbers = values.filter(known);
  const positive = numbers.length > 0 && numbers.every((value) => value > 0);
  return { type: positive ? "log" : "linear", label, grid: true, tickFormat: positive ? (value) => number(value, 3) : undefined, nice: positive };
}

// Spearman's rank correlation; ties share their mean rank.
function rankCorrelation(first, second) {
  const ranks = (values) => {
    const order = d3.range(values.length).sort((a, b) => values[a] - values[b]);
    const found = new Array(values.length);
    for (let start = 0; start < order.length;) {
      let end = start;
      while (end < order.length && values[order[end]] === values[order[start]]) end += 1;
      for (let at = start; at < end; at += 1) found[order[at]] = (start + end - 1) / 2;
      start = end;
    }
    return found;
  };
  const a = ranks(first), b = ranks(second), meanA = d3.mean(a), meanB = d3.mean(b);
  const together = d3.sum(a, (value, at) => (value - meanA) * (b[at] - meanB));
  const apart = Math.sqrt(d3.sum(a, (value) => (value - meanA) ** 2) * d3.sum(b, (value) => (value - meanB) ** 2));
  return apart > 0 ? together / apart : null;
}

function start(build) {
  readData().then((data) => {
    const main = document.getElementById("main");
    main.replaceChildren();
    build(data, main);
    // Drawings have a size of their own: made again for paper and for another window.
    addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
    document.documentElement.dataset.ready = "true";
  });
}

"use strict";
// The page of one report. Every number on it comes from the JSON in the page, which is report.json.

const WORDS = { divergence: "KL divergence from the float model, nats per sample", task: "change of the task loss" };
const SHOWN = new Set(["format", "version", "loss", "models", "groups", "left_in_float", "solver", "seconds", "samples", "repair", "trials",
  "pairs", "finetuning", "coverage", "frontier", "receipt", "held_out", "targets"]);
const colourOfBits = (bits) => `var(--b${bits >= 9 ? 16 : Math.max(2, Math.round(bits))})`;

start((report, main) => {
  const state = { report, at: 0, group: 0, listeners: [], ...policies(report) };
  state.at = Math.max(0, state.points.findIndex((point) => point.name === "chosen"));
  const change = (next) => { Object.assign(state, next); state.listeners.forEach((listener) => listener()); };
  document.title = `lightning_mpq: ${summary(report)}`;
  main.append(...[
    heading(report),
    el("div", {}, ...[budgetSection(state, change), stripSection(state, change), layerSection(state, change)].filter(Boolean)),
    metricsSection(report),
    predictedSection(report),
    pairsSection(report),
    stabilitySection(report),
    repairSection(report),
    ...Object.entries(report).filter(([name, value]) => !SHOWN.has(name) && !empty(value))
      .map(([name, value]) => section(name.replaceAll(/[^\w-]/g, "-"), capital(words(name)), anything(capital(words(name)), value))),
    targetsSection(report),
    floatSection(report),
    copySection(state),
    receiptSection(report),
  ].filter(Boolean));
  change({});
});

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const empty = (value) => value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);
const rowOf = (report, name) => report.models.find((row) => row.name === name || row.name.split(" ")[0] === name);

// The policies that the slider goes through; of a report without a frontier, the chosen one alone, as far as its rows tell.
function policies(report) {
  const record = report.frontier;
  if (!empty(record) && record.points.length) {
    const widthOf = (group, choice) => widthOfScheme(record.schemes[record.candidates[group].schemes[choice]]);
    const points = record.points.map((point) => ({ ...point, bits: point.choice.map((choice, group) => widthOf(group, choice)) }));
    return { record, points };
  }
  const chosen = rowOf(report, "chosen") ?? report.models.at(-1) ?? {};
  const point = { name: "chosen", choice: null, average_bits: chosen.average_bits, stored_bytes: chosen.stored_bytes, predicted_loss: chosen.predicted_loss,
    standard_error: report.solver?.prediction_error ?? null, lower_bound: report.solver?.lower_bound ?? null, additive_loss: report.solver?.additive_loss ?? null,
    bits: report.groups.map((group) => group.bits) };
  return { record: null, points: [point] };
}

const widthOfScheme = (scheme) => scheme.weight?.bits ?? scheme.bits;

function summary(report) {
  const chosen = rowOf(report, "chosen") ?? report.models.at(-1);
  return chosen ? `${number(chosen.average_bits, 3)} bits per weight, ${megabytes(chosen.stored_bytes)}` : "report";
}

function heading(report) {
  const chosen = rowOf(report, "chosen") ?? report.models.at(-1), float = rowOf(report, "float");
  const said = [];
  if (chosen && float) {
    said.push(`The chosen policy stores ${megabytes(chosen.stored_bytes)} instead of ${megabytes(float.stored_bytes)}, ` +
      `${number(float.stored_bytes / chosen.stored_bytes, 3)} times less, at ${number(chosen.average_bits, 4)} bits per quantized weight.`);
    const [name] = Object.keys(chosen.metrics ?? {}).filter((metric) => metric in (float.metrics ?? {}));
    if (name) said.push(`${name} goes from ${number(float.metrics[name])} to ${number(chosen.metrics[name])}.`);
  }
  if (report.coverage) said.push(`${number(100 * report.coverage.quantized / Math.max(1, report.coverage.total), 3)} % of the parameters are quantized.`);
  return el("header", {},
    el("a", { class: "skip", href: "#budget" }, "Go to the budget"),
    el("h1", {}, `Mixed-precision policy: ${summary(report)}`),
    el("p", {}, said.join(" ")),
    el("p", { class: "quiet" }, `Loss: ${WORDS[report.loss] ?? report.loss}; measured on ${count(report.held_out || report.samples, report.held_out ? "held-out calibration sample" : "calibration sample")}. ` +
      `${count(report.groups.length, "group")} of layers. Solver: ${report.solver?.status ?? "unknown"}.`));
}

// ---- the frontier and its slider

function budgetSection(state, change) {
  const { points, record, report } = state;
  const last = points.length - 1;
  const slider = el("input", { type: "range", id: "slider", min: 0, max: last, step: 1, value: state.at, disabled: last === 0,
    "aria-describedby": "slider-help", oninput: (event) => change({ at: Number(event.target.value) }) });
  const values = el("dl", { class: "numbers", id: "numbers" });
  const back = el("button", { type: "button", id: "chosen", onclick: () => change({ at: Math.max(0, points.findIndex((point) => point.name === "chosen")) }) }, "Back to the chosen policy");
  const place = el("div", { class: "clickable" });
  const panel = el("div", { class: "panel sticky" }, el("label", { for: "slider" }, "Budget"), slider,
    el("p", { class: "quiet", id: "slider-help" }, last > 0
      ? `${count(points.length, "solved policy", "solved policies")}, smallest first. Arrow keys move by one.`
      : record?.note || "This report holds the chosen policy alone, so that there is no other budget to move to."),
    el("div", { "aria-live": "polite" }, values), el("p", { class: "screen" }, back));
  const draw = () => { place.replaceChildren(frontierPlot(state, change)); };
  state.listeners.push(() => {
    const point = points[state.at];
    slider.value = state.at;
    slider.setAttribute("aria-valuetext", `${number(point.average_bits)} bits per weight, ${megabytes(point.stored_bytes)}, predicted loss ${number(point.predicted_loss)}`);
    values.replaceChildren(...pointNumbers(point, report).map(([name, value, key]) =>
      el("div", {}, el("dt", {}, name), el("dd", { "data-number": key, "data-value": value.raw ?? null }, value.text))));
    back.disabled = point.name === "chosen";
    draw();
  });
  addEventListener("resize", draw);
  const rows = [...points, ...(record?.others ?? [])];
  return section("budget", "Budget",
    panel,
    figure("Left and low is better. The band is one standard error of the prediction; measured points are of the calibration batches, after all repair.", place),
    folded("All policies as a table", table("Policies that were solved or compared with", rows, [
      ["policy", (row) => row.name], ["bits per weight", (row) => row.average_bits, "number"], ["bytes", (row) => row.stored_bytes, "number"],
      ["predicted loss", (row) => row.predicted_loss, "number"], ["standard error", (row) => row.standard_error, "number"],
      ["proved lower bound", (row) => row.lower_bound, "number"], ["additive policy", (row) => row.additive_loss, "number"],
    ], (row) => row.name === "chosen")));
}

function pointNumbers(point, report) {
  const measured = point.name === "chosen" ? rowOf(report, "chosen") : null;
  const plain = (value) => ({ text: number(value), raw: value });
  const found = [
    ["bits per weight", plain(point.average_bits), "average_bits"],
    ["whole model", { text: megabytes(point.stored_bytes), raw: point.stored_bytes }, "stored_bytes"],
    ["predicted loss", { text: number(point.predicted_loss) + (known(point.standard_error) ? ` ± ${number(point.standard_error, 2)}` : ""), raw: point.predicted_loss }, "predicted_loss"],
  ];
  if (known(point.lower_bound)) found.push(["no policy below", plain(point.lower_bound), "lower_bound"]);
  if (known(point.additive_loss)) found.push(["additive policy loses", plain(point.additive_loss), "additive_loss"]);
  if (measured) {
    found.push(["measured loss", plain(measured.measured_loss), "measured_loss"]);
    for (const [name, value] of Object.entries(measured.metrics ?? {}).slice(0, 3)) found.push([name, plain(value), "metric"]);
  }
  return found;
}

function frontierPlot(state, change) {
  const { points, record, report } = state;
  const largest = d3.max(points, (row) => row.stored_bytes);
  const [unit, name] = largest < 1e6 ? [1e3, "kB"] : largest < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  const size = (row) => row.stored_bytes / unit;
  const ofFrontier = points.filter((point) => point.name === "frontier" || point.name === "chosen");
  const line = pareto(ofFrontier);
  const others = record?.others ?? [];
  const uniform = others.filter((row) => row.name.startsWith("uniform")), additive = others.filter((row) => row.name === "additive");
  const additiveLine = line.filter((point) => known(point.additive_loss));
  const measured = report.models.filter((row) => row.name !== "float" && known(row.measured_loss));
  const all = [...line, ...uniform, ...additive].map((row) => row.predicted_loss).concat(measured.map((row) => row.measured_loss));
  const scale = lossScale(all, "change of the loss");
  const positive = (value) => scale.type !== "log" || value > 0;
  const floor = scale.type === "log" ? Math.min(...all.filter((value) => known(value) && value > 0)) / 2 : -Infinity;
  const banded = line.filter((point) => known(point.standard_error));
  const here = points[state.at];
  const plot = drawing(`Predicted loss over stored bytes for ${points.length} policies; the table below has the numbers.`, {
    height: 340, marginLeft: 60, marginRight: 24, y: scale, marginBottom: 40, x: { label: `stored ${name}`, grid: true, nice: true },
    marks: [
      banded.length > 1 ? Plot.areaY(banded, { x: size, y1: (p) => Math.max(p.predicted_loss - p.standard_error, floor), y2: (p) => p.predicted_loss + p.standard_error, fill: "var(--band)" }) : null,
      line.length > 1 ? Plot.line(line.filter((p) => positive(p.predicted_loss)), { x: size, y: "predicted_loss", stroke: "var(--accent)", strokeWidth: 2 }) : null,
      additiveLine.length > 1 ? Plot.line(additiveLine.filter((p) => positive(p.additive_loss)), { x: size, y: "additive_loss", stroke: "var(--second)", strokeDasharray: "2 3" }) : null,
      Plot.dot(line.filter((p) => positive(p.predicted_loss)), { x: size, y: "predicted_loss", r: 3, fill: "var(--accent)", title: describe }),
      Plot.dot(uniform.filter((p) => positive(p.predicted_loss)), { x: size, y: "predicted_loss", symbol: "square", r: 4, stroke: "var(--third)", title: describe }),
      Plot.text(uniform.filter((p) => positive(p.predicted_loss)), { x: size, y: "predicted_loss", text: (p) => p.name.replace("uniform ", ""), dx: 7, textAnchor: "start", fill: "var(--third)" }),
      Plot.dot(additive.filter((p) => positive(p.predicted_loss)), { x: size, y: "predicted_loss", symbol: "diamond", r: 5, stroke: "var(--second)", title: describe }),
      Plot.dot(measured.filter((p) => positive(p.measured_loss)), { x: size, y: "measured_loss", symbol: "times", r: 5, stroke: "var(--fourth)", strokeWidth: 2, title: (p) => `${p.name}, measured: ${number(p.measured_loss)}` }),
      known(here.predicted_loss) && positive(here.predicted_loss) ? Plot.dot([here], { x: size, y: "predicted_loss", r: 8, stroke: "var(--ink)", strokeWidth: 2 }) : null,
      Plot.ruleX([here], { x: size, stroke: "var(--quiet)", strokeDasharray: "4 3" }),
    ].filter(Boolean),
  });
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect();
    const x = plot.scale("x").invert((event.clientX - box.left) * (plot.viewBox.baseVal.width / box.width));
    change({ at: d3.leastIndex(points, (point) => Math.abs(size(point) - x)) });
  });
  const float = rowOf(report, "float");
  return el("div", {}, plot, legend([
    ["var(--accent)", "best policy of each budget, predicted"], additiveLine.length > 1 ? ["var(--second)", "additive policy, by the whole model"] : null,
    uniform.length ? ["var(--third)", "one width everywhere, predicted"] : null, ["var(--fourth)", "measured, repaired"],
    float ? ["transparent", `float: ${megabytes(float.stored_bytes)}, loss 0`] : null]));
}

const describe = (point) => `${point.name}: ${number(point.average_bits)} bits, ${megabytes(point.stored_bytes)}, predicted loss ${number(point.predicted_loss)}`;

// Those that nothing smaller beats: the chosen policy may lie above the line, having been chosen by measurement.
function pareto(points) {
  let best = Infinity;
  return [...points].sort((a, b) => a.stored_bytes - b.stored_bytes || a.predicted_loss - b.predicted_loss)
    .filter((point) => known(point.predicted_loss) && point.predicted_loss < best && ((best = point.predicted_loss), true));
}

function legend(entries) {
  return el("ul", { class: "legend" }, entries.filter(Boolean).map(([colour, text]) =>
    el("li", {}, el("span", { class: "swatch", style: `background:${colour}`, "aria-hidden": "true" }), text)));
}

// ---- the strip: layer by layer

function stripSection(state, change) {
  const { report } = state;
  if (!report.groups.length) return null;
  const place = el("div", { class: "clickable", id: "strip" });
  const rows = el("div", {});
  const draw = () => {
    const bits = state.points[state.at].bits;
    place.replaceChildren(strip(state, change));
    place.dataset.bits = bits.join(" ");
    if (rows.parentElement.open) rows.replaceChildren(policyTable(state));
  };
  state.listeners.push(draw);
  addEventListener("resize", draw);
  const details = folded("The policy as a table", rows);
  details.addEventListener("toggle", () => { if (details.open) rows.replaceChildren(policyTable(state)); });
  const shared = report.groups.filter((group) => group.layers.length > 1).length + (state.record?.tied?.length ?? 0);
  return section("policy", "The policy, layer by layer",
    figure(`Height and colour: bits per weight, in the order of the model, at the budget of the slider.${shared ? " Brackets below: layers that share one decision." : ""} A click shows a layer below.`, place),
    details);
}

function policyTable(state) {
  const bits = state.points[state.at].bits;
  return table("Bits of each group at the budget of the slider", state.report.groups.map((group, at) => ({ ...group, now: bits[at] })), [
    ["group", (row) => row.group], ["bits here", (row) => row.now, "number"], ["bits chosen", (row) => row.bits, "number"], ["scheme chosen", (row) => row.scheme],
    ["weights", (row) => row.weights, "number"], ["bytes chosen", (row) => row.stored_bytes, "number"], ["share of the loss", (row) => row.predicted_share, "number"],
    ["predicted alone", (row) => row.predicted_alone, "number"], ["measured alone", (row) => row.measured_alone, "number"],
    ["layers", (row) => (row.layers.length > 1 ? row.layers.join(", ") : "")],
  ]);
}

function strip(state, change) {
  const { report } = state;
  const bits = state.points[state.at].bits, many = report.groups.length;
  const bars = bits.map((width, at) => ({ at, width }));
  const present = [...new Set(bits)].sort((a, b) => a - b);
  const brackets = report.groups.flatMap((group, at) => (group.layers.length > 1 ? [{ from: at + 0.1, to: at + 0.9 }] : []))
    .concat((state.record?.tied ?? []).map((tied) => ({ from: Math.min(...tied) + 0.5, to: Math.max(...tied) + 0.5 })));
  const named = many <= 48;
  const short = (name) => (name.length > 28 ? `…${name.slice(-27)}` : name);
  const longest = d3.max(report.groups, (group) => short(group.group).length) ?? 0;
  const plot = drawing(`Bits of ${many} groups: ${present.map((width) => `${bits.filter((each) => each === width).length} at ${number(width)} bits`).join(", ")}; the table below has each.`, {
    height: named ? 180 + 5 * longest : 200, marginLeft: 40, marginBottom: named ? 20 + 5.2 * longest : 34, marginRight: 4,
    x: { domain: [0, many], label: named ? null : "group", ticks: named ? [] : 10 },
    y: { domain: [brackets.length ? -0.5 : 0, Math.max(8, d3.max(bits) ?? 8)], label: "bits", ticks: [2, 3, 4, 5, 6, 7, 8], grid: true, tickFormat: "d" },
    marks: [
      Plot.rect(bars, { x1: "at", x2: (d) => d.at + 1, y1: 0, y2: "width", fill: (d) => colourOfBits(d.width), insetLeft: many > 200 ? 0 : 0.5, insetRight: many > 200 ? 0 : 0.5, title: (d) => `${report.groups[d.at].group}: ${number(d.width)} bits` }),
      Plot.link(brackets, { x1: "from", x2: "to", y1: -0.3, y2: -0.3, stroke: "var(--quiet)", strokeWidth: 1.5 }),
      named ? Plot.text(report.groups, { x: (_, at) => at + 0.5, y: brackets.length ? -0.5 : 0, text: (group) => short(group.group), rotate: -90, textAnchor: "end", dy: 6, fill: "var(--ink)", fontSize: 11 }) : null,
      Plot.ruleX([state.group + 0.5], { stroke: "var(--ink)", strokeWidth: Math.max(1, Math.min(2, 500 / many)), strokeDasharray: "2 2" }),
    ].filter(Boolean),
  });
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect();
    const x = plot.scale("x").invert((event.clientX - box.left) * (plot.viewBox.baseVal.width / box.width));
    change({ group: Math.min(many - 1, Math.max(0, Math.floor(x))) });
  });
  return el("div", {}, plot, legend(present.map((width) => [colourOfBits(width), `${number(width)} bits`])));
}

// ---- one layer

function layerSection(state, change) {
  const { report, record } = state;
  if (!report.groups.length) return null;
  const select = el("select", { id: "group", onchange: (event) => change({ group: Number(event.target.value) }) },
    report.groups.map((group, at) => el("option", { value: at }, group.group)));
  const place = el("div", { id: "layer", "aria-live": "polite" });
  state.listeners.push(() => { select.value = state.group; place.replaceChildren(...layer(state)); });
  return section("one-layer", "One layer", el("label", { for: "group" }, "Group of layers"), select, place);
}

function layer(state) {
  const { report, record } = state;
  const group = report.groups[state.group], point = state.points[state.at];
  const total = d3.sum(report.groups, (each) => each.predicted_share);
  const share = total !== 0 ? ` (${number(100 * group.predicted_share / total, 3)} %)` : "";
  const found = [el("p", {}, `${group.group}${group.layers.length > 1 ? ` (${group.layers.join(", ")})` : ""} has ${count(group.weights, "weight")}; chosen: ${group.scheme}. ` +
    `Its share of the predicted loss is ${number(group.predicted_share)}${share}. Quantized alone it was predicted to add ${number(group.predicted_alone)} and measured to add ${number(group.measured_alone)}.`)];
  if (!record) return found;
  const own = record.candidates[state.group], now = point.choice[state.group];
  const chosen = state.points.find((each) => each.name === "chosen").choice[state.group];
  const wider = nextWider(own, chosen);
  if (wider !== null) {
    const bytes = own.stored_bytes[wider] - own.stored_bytes[chosen], loss = own.instead[wider];
    found.push(el("p", { id: "price" }, `One step wider (${record.schemes[own.schemes[wider]].name}) would change the predicted loss by ${signed(loss)} and take ${number(bytes)} bytes more: ${number(-loss / bytes, 3)} of loss saved a byte.`));
  } else found.push(el("p", { id: "price" }, "There is no wider candidate."));
  const pairs = own.pairs.filter(([, loss]) => loss !== 0);
  if (pairs.length) found.push(el("p", {}, `Strongest pairs under the chosen policy: ${pairs.map(([other, loss]) => `${report.groups[other]?.group} (${signed(loss)})`).join(", ")}. A negative number: the errors cancel each other.`));
  found.push(table(`Candidates of ${group.group}`, d3.range(own.schemes.length), [
    ["scheme", (at) => record.schemes[own.schemes[at]].name + (at === chosen ? " (chosen)" : "") + (at === now && now !== chosen ? " (at the slider)" : "")],
    ["bytes", (at) => own.stored_bytes[at], "number"], ["loss alone", (at) => own.alone[at], "number"],
    ["change, others as chosen", (at) => signed(own.instead[at]), "number"],
  ], (at) => at === now));
  return found;
}

// The candidate that stores the least of those that store more.
function nextWider(own, chosen) {
  const larger = d3.range(own.stored_bytes.length).filter((at) => own.stored_bytes[at] > own.stored_bytes[chosen]);
  return larger.length ? larger.reduce((a, b) => (own.stored_bytes[b] < own.stored_bytes[a] ? b : a)) : null;
}

// ---- what was measured

function metricsSection(report) {
  const names = [...new Set(report.models.flatMap((row) => Object.keys(row.metrics ?? {})))];
  const extra = [...new Set(report.models.flatMap(Object.keys))].filter((name) =>
    !["name", "average_bits", "stored_bytes", "predicted_loss", "measured_loss", "measured_frozen", "metrics", "fitted_loss", "above_chosen", "above_chosen_error", "intervals"].includes(name) && report.models.some((row) => !empty(row[name])));
  const largest = d3.max(report.models, (row) => row.stored_bytes);
  const value = (cell) => (cell !== null && typeof cell === "object" ? intervals(cell) : cell);
  return section("models", "Float, uniform, additive, chosen",
    table(`Models, measured side by side (loss: ${WORDS[report.loss] ?? report.loss})`, report.models, [
      ["model", (row) => row.name], ["bits per weight", (row) => row.average_bits, "number"], ["bytes", (row) => row.stored_bytes, "number"],
      ["times smaller", (row) => Number((largest / row.stored_bytes).toPrecision(4)), "number"], ["predicted loss", (row) => row.predicted_loss, "number"],
      ["measured, as rounded", (row) => row.measured_frozen, "number"], ["measured, repaired", (row) => row.measured_loss, "number"],
      ...(report.models.some((row) => known(row.above_chosen)) ? [["above chosen", (row) => (row.name === "chosen" ? "" : withError(row.above_chosen, row.above_chosen_error)), "number"]] : []),
      ...(report.models.some((row) => known(row.fitted_loss)) ? [["on fitted data", (row) => row.fitted_loss, "number"]] : []),
      ...names.map((name) => [name, (row) => withInterval(row.metrics?.[name], row.intervals?.[name]), "number"]),
      ...extra.map((name) => [words(name), (row) => value(row[name]), "number"]),
    ], (row) => row.name === "chosen"),
    report.models.some((row) => !empty(row.intervals)) ? el("p", { class: "quiet" }, "In brackets: what 95 of 100 values on other validation batches of the same kind would lie between. All models see the same batches, so that their differences are surer than that.") : null,
    heldOut(report),
    report.finetuning ? el("p", {}, `Fine-tuning took the task loss on the calibration batches from ${number(report.finetuning.loss_before)} to ${number(report.finetuning.loss_after)}.`) : null);
}

const withInterval = (value, interval) => (known(value) && interval ? `${number(value)} (${interval.map((each) => number(each)).join(" to ")})` : value);
const withError = (value, error) => (known(value) ? signed(Number(value.toPrecision(2))) + (known(error) ? ` ± ${number(error, 1)}` : "") : "–");

function heldOut(report) {
  const chosen = rowOf(report, "chosen");
  if (!("held_out" in report)) return null;
  if (!report.held_out) return el("p", { class: "warning" }, "Nothing is held out: losses are measured on the samples that rounding and repair were fitted to.");
  return el("p", {}, `${count(report.held_out, "sample")} of ${report.samples} are held out and judge: the chosen model loses ${number(chosen?.measured_loss)} on them and ${number(chosen?.fitted_loss)} on samples that it was fitted to. Differences from the chosen model have the standard error of the differences sample by sample.`);
}

const intervals = (cell) => (Array.isArray(cell) ? cell.map((each) => number(each)).join(" to ") : Object.entries(cell).map(([name, each]) => `${words(name)} ${Array.isArray(each) ? intervals(each) : number(each)}`).join("; "));

function predictedSection(report) {
  const groups = report.groups.map((row) => ({ name: row.group, what: "group alone", predicted: row.predicted_alone, measured: row.measured_alone }));
  const trials = (report.trials ?? []).map((row) => ({ name: `${row.policy}${row.kept ? " (kept)" : ""}`, what: "policy tried", predicted: row.predicted_loss, measured: row.measured_loss, above: row.kept ? 0 : row.above_kept, error: row.kept ? 0 : row.above_kept_error }));
  const models = report.models.filter((row) => row.name !== "float").map((row) => ({ name: row.name, what: "policy compared", predicted: row.predicted_loss, measured: row.measured_frozen ?? row.measured_loss }));
  const rows = [...groups, ...trials, ...models].filter((row) => known(row.predicted) && known(row.measured));
  if (!rows.length) return null;
  const kinds = { "group alone": "var(--accent)", "policy tried": "var(--second)", "policy compared": "var(--third)" };
  const values = rows.flatMap((row) => [row.predicted, row.measured]);
  const shown = values.some((value) => value > 0) ? rows.filter((row) => row.predicted > 0 && row.measured > 0) : rows;
  const log = shown.length > 0 && shown.every((row) => row.predicted > 0 && row.measured > 0);
  const ends = d3.extent(shown.flatMap((row) => [row.predicted, row.measured]));
  const axis = (label) => ({ ...lossScale(log ? ends : [-1], label), domain: log ? [ends[0] / 1.5, ends[1] * 1.5] : ends, nice: !log });
  const width = Math.min(520, document.getElementById("main").clientWidth - 24);
  const hidden = rows.length - shown.length;
  return section("predicted", "Predicted and measured",
    ...verdict(groups, trials, report).map((sentence) => el("p", { class: sentence.bad ? "warning" : null }, sentence.text)),
    figure(`On the line prediction and measurement agree.${hidden ? ` ${count(hidden, "value")} at or below zero ${hidden === 1 ? "is" : "are"} in the table alone.` : ""}`,
      drawing(`Measured over predicted loss for ${shown.length} groups and policies; the table below has the numbers.`, {
        width, height: width * 0.8, marginLeft: 60, marginBottom: 40, x: axis("predicted loss"), y: axis("measured loss"),
        marks: [
          Plot.line([ends, ends].map((_, at) => [ends[at], ends[at]]), { stroke: "var(--quiet)", strokeDasharray: "3 3" }),
          Plot.dot(shown, { x: "predicted", y: "measured", stroke: (row) => kinds[row.what], r: 3.5, title: (row) => `${row.name}: predicted ${number(row.predicted)}, measured ${number(row.measured)}` }),
        ],
      }), legend(Object.entries(kinds).filter(([what]) => rows.some((row) => row.what === what)).map(([what, colour]) => [colour, what]))),
    folded("Predicted and measured as a table", table("Predicted and measured loss", rows, [
      ["name", (row) => row.name], ["what", (row) => row.what], ["predicted", (row) => row.predicted, "number"], ["measured", (row) => row.measured, "number"],
      ["measured / predicted", (row) => (row.predicted !== 0 ? row.measured / row.predicted : null), "number"]])));
}

// Plain sentences on how well the model predicted, the bad ones marked.
function verdict(groups, trials, report) {
  const said = [];
  const usable = (rows) => rows.filter((row) => known(row.predicted) && known(row.measured));
  const tried = usable(trials);
  for (const [rows, what] of [[usable(groups), "groups quantized alone"], [tried, "policies that were tried"]]) {
    if (rows.length < 3) continue;
    const rank = rankCorrelation(rows.map((row) => row.predicted), rows.map((row) => row.measured));
    const alike = rows === tried && tried.every((row) => known(row.error) && Math.abs(row.above) <= 2 * row.error);
    if (rank !== null && alike) said.push({ bad: false, text: `Rank correlation over ${rows.length} ${what}: ${rank.toFixed(2)}; none differs from the kept one by more than two standard errors, so that their order says little.` });
    else if (rank !== null) said.push({ bad: rank < 0.7, text: `Rank correlation over ${rows.length} ${what}: ${rank.toFixed(2)}.${rank < 0.7 ? " The order that the model predicts is not the one that was measured." : ""}` });
  }
  const kept = (report.trials ?? []).find((row) => row.kept) ?? null;
  const chosen = rowOf(report, "chosen");
  const [predicted, measured] = kept ? [kept.predicted_loss, kept.measured_loss] : [chosen?.predicted_loss, chosen?.measured_frozen];
  if (known(predicted) && known(measured) && predicted > 0) {
    const factor = measured / predicted, wrong = !(factor < 2 && factor > 0.5);
    said.push({ bad: wrong, text: wrong
      ? `The model failed for the chosen policy: it predicted ${number(predicted)}, and ${number(measured)} was measured${factor > 0 ? `, a factor of ${number(factor, 3)}` : ""}. Trust the measured numbers.`
      : `For the chosen policy ${number(predicted)} was predicted and ${number(measured)} measured.` });
  }
  const first = (report.trials ?? []).find((row) => row.policy === "solved");
  if (kept && first && !first.kept && known(first.measured_loss)) said.push({ bad: true, text: `The policy that the model held for the best was not: it measured ${number(first.measured_loss)}, and "${kept.policy}" with ${number(kept.measured_loss)} was kept.` });
  return said;
}

function pairsSection(report) {
  const pairs = report.pairs, blocks = report.frontier?.blocks;
  if (empty(pairs) && empty(blocks)) return null;
  const content = [];
  if (!empty(pairs)) {
    const error = known(pairs.standard_error) ? ` ± ${number(pairs.standard_error, 2)}` : "";
    const clear = known(pairs.standard_error) ? (Math.abs(pairs.measured) > 2 * pairs.standard_error ? "pairs count here" : "zero within its error, so that an additive policy does as well") : "no standard error is known";
    content.push(el("p", {}, `Between groups: ${signed(pairs.measured)}${error} of a predicted loss of ${number(pairs.total)} (${clear}).`));
  }
  if (!empty(blocks)) content.push(...matrix(blocks));
  return section("pairs", "Pairs of layers", ...content);
}

function matrix(blocks) {
  const cells = blocks.names.flatMap((row, i) => blocks.names.map((column, j) => ({ row, column, i, j, loss: blocks.loss[i][j], noise: blocks.noise?.[i][j] ?? null })));
  const apart = cells.filter((cell) => cell.i !== cell.j && known(cell.loss));
  const largest = d3.max(apart, (cell) => Math.abs(cell.loss)) || 1;
  const clear = (cell) => cell.noise === null || Math.abs(cell.loss) > 2 * cell.noise;
  const level = d3.median(apart.filter((cell) => cell.noise !== null), (cell) => cell.noise);
  const above = apart.filter((cell) => cell.i < cell.j && clear(cell)).length, all = apart.length / 2;
  const width = Math.min(640, document.getElementById("main").clientWidth - 24), names = blocks.names.length;
  const short = (at) => (blocks.names[at].length > 22 ? `…${blocks.names[at].slice(-21)}` : blocks.names[at]);
  const margin = 14 + 6.2 * d3.max(d3.range(names), (at) => short(at).length);
  const found = [];
  if (names > 1) {
    if (known(level)) found.push(el("p", {}, `${above} of ${all} pairs of blocks stand out from the noise, whose level is about ${number(level, 2)}.`));
    found.push(figure("Red: errors add up; blue: they cancel. Faint cells lie within twice their noise. The diagonal is what a block adds by itself, in the table.",
      drawing(`What ${all} pairs of blocks add to the predicted loss; the table below has the numbers.`, {
        width, height: Math.min(width, margin + 24 * names + 20), marginLeft: margin, marginTop: 4, marginBottom: margin,
        x: { type: "band", domain: d3.range(names), tickFormat: short, tickRotate: -90, label: null }, y: { type: "band", domain: d3.range(names), tickFormat: short, label: null },
        marks: [
          Plot.cell(cells, { x: "j", y: "i", fill: "var(--field)", inset: 0.5 }),
          Plot.cell(apart, { x: "j", y: "i", fill: (cell) => (cell.loss > 0 ? "var(--plus)" : "var(--minus)"), fillOpacity: (cell) => Math.sqrt(Math.abs(cell.loss) / largest) * (clear(cell) ? 1 : 0.25), inset: 0.5, title: (cell) => `${cell.row} and ${cell.column}: ${signed(cell.loss)}${cell.noise === null ? "" : ` ± ${number(cell.noise, 2)}`}` }),
        ],
        opacity: { type: "identity" },
      })));
  }
  const listed = cells.filter((cell) => cell.i <= cell.j && known(cell.loss)).sort((a, b) => Math.abs(b.loss) - Math.abs(a.loss)).slice(0, 200);
  found.push(folded("Pairs as a table", table(`What blocks add, alone and in pairs${cells.length > 2 * 200 ? " (the 200 largest)" : ""}`, listed, [
    ["block", (cell) => cell.row], ["with", (cell) => (cell.i === cell.j ? "itself" : cell.column)], ["loss", (cell) => signed(cell.loss), "number"], ["noise", (cell) => cell.noise, "number"]])));
  return found;
}

// How many redraws of the samples give a group the same width.
function stabilitySection(report) {
  const found = report.solver?.stability;
  if (empty(found)) return null;
  const groups = report.groups.map((group, at) => ({ at, name: group.group, share: found.shares?.[group.group] })).filter((row) => known(row.share));
  const percent = (share) => `${number(100 * share, 3)} %`;
  const unsure = groups.filter((row) => row.share < 0.5).length;
  return section("stability", "Stability",
    el("p", {}, `On ${found.resamples} redraws of the samples ${percent(found.kept)} of the groups keep their width on average, the policy is within 1 % of the best in ${percent(found.near_best)} ` +
      `(median ${signed(100 * found.excess)} %), and its predicted loss is ${number(found.interval[0])} to ${number(found.interval[1])} in nine of ten.`),
    found.note ? el("p", { class: "warning" }, found.note) : null,
    groups.length ? figure("How often each group keeps its width, in the order of the model.",
      drawing(`Share of redraws in which each of ${groups.length} groups keeps its width, ${unsure} of them in fewer than half; the table below has each.`, {
        height: 140, marginLeft: 44, x: { domain: [0, report.groups.length], label: "group", ticks: Math.min(10, report.groups.length), tickFormat: "d" }, y: { percent: true, label: "% the same", domain: [0, 100], grid: true, ticks: 4 },
        marks: [Plot.rect(groups, { x1: "at", x2: (row) => row.at + 1, y1: 0, y2: "share", inset: groups.length > 200 ? 0 : 0.5, fill: (row) => (row.share < 0.5 ? "var(--second)" : "var(--accent)"), title: (row) => `${row.name}: ${percent(row.share)}` })],
      })) : null,
    folded("Stability as a table", table("Share of redraws in which a group keeps its width", groups, [["group", (row) => row.name], ["share", (row) => row.share, "number"]])));
}

function repairSection(report) {
  if (empty(report.repair)) return null;
  return section("repair", "What repair gains", table("The chosen policy after each step of repair", report.repair, [
    ["rounding", (row) => row.rounding],
    ["repaired", (row) => row.repaired.map((step) => (row.refused?.includes(step) ? `${step} (taken back)` : step)).join(" + ") || "nothing yet"],
    ["measured loss", (row) => row.measured_loss, "number"],
    ...(report.repair.some((row) => known(row.fitted_loss)) ? [["on fitted data", (row) => row.fitted_loss, "number"]] : [])]));
}

// Which runtimes can hold the chosen policy, and what keeps the others from it.
function targetsSection(report) {
  if (empty(report.targets)) return null;
  const able = report.targets.filter((row) => row.holds).map((row) => row.target);
  const reasons = (row) => (row.holds ? "nothing" : `${row.reasons.join("; ")}${row.obstacles > row.reasons.length ? `; and ${row.obstacles - row.reasons.length} more` : ""}`);
  return section("targets", "Which targets can hold it",
    el("p", {}, able.length ? `The chosen policy can be held by ${able.join(", ")}. Bytes are codes, scales and zero points there, without headers and what stays in float.`
      : "None of the targets can hold the chosen policy."),
    table("The chosen policy in each target", report.targets, [["target", (row) => row.target], ["holds it", (row) => (row.holds ? "yes" : "no")],
      ["bytes there", (row) => row.stored_bytes, "number"], ["what blocks it", reasons]]));
}

function floatSection(report) {
  const left = Object.entries(report.left_in_float ?? {});
  if (!left.length) return null;
  return section("float", "Left in float", table("Layers that were not quantized", left, [["layer", (row) => row[0]], ["reason", (row) => row[1]]]));
}

// ---- taking a policy along

function copySection(state) {
  const { record, report } = state;
  if (!record && empty(report.solver?.policy)) return null;
  const text = el("textarea", { id: "policy-text", readonly: true, "aria-label": "The policy as text", rows: 8, spellcheck: "false" });
  const said = el("p", { role: "status", class: "quiet" });
  const choose = el("select", { id: "policy-kind", onchange: () => show() },
    [["json", "JSON"], ["yaml", "YAML"], ["python", "Python"]].map(([value, name]) => el("option", { value }, name)));
  const shown = folded("The text", text);
  const show = () => { if (shown.open) text.value = policyText(state, choose.value); }; // laying it out takes a second for 2,000 groups
  const copy = async () => {
    const policy = policyText(state, choose.value);
    try { await navigator.clipboard.writeText(policy); } catch { shown.open = true; text.value = policy; text.select(); document.execCommand("copy"); }
    said.textContent = `Copied the policy of ${number(state.points[state.at].average_bits)} bits per weight as ${choose.selectedOptions[0].text}.`;
  };
  shown.addEventListener("toggle", show);
  state.listeners.push(show);
  return section("copy", "Take this policy along",
    el("p", {}, "The policy at the budget of the slider, for policy=FILE or BitPolicy.load."),
    el("p", { class: "screen" }, el("label", { for: "policy-kind" }, "Copy this policy as"), choose, " ", el("button", { type: "button", id: "copy-policy", onclick: copy }, "Copy this policy")),
    said, shown);
}

function policyOf(state) {
  const { record, report } = state;
  if (!record) return report.solver.policy;
  const point = state.points[state.at];
  const groups = report.groups.map((group, at) => {
    const { name, ...scheme } = record.schemes[record.candidates[at].schemes[point.choice[at]]];
    return [group.group, { layers: group.layers, ...scheme }];
  });
  return { format: "lightning_mpq.policy", version: report.solver?.policy?.version ?? 2, groups: Object.fromEntries(groups) };
}

function policyText(state, kind) {
  const policy = policyOf(state);
  if (kind === "json") return JSON.stringify(policy, null, 2);
  if (kind === "yaml") return yaml(policy, "");
  return `import json\n\nimport lightning_mpq as mpq\n\npolicy = mpq.BitPolicy.from_json(json.dumps(${python(policy, "")}))\n`;
}

// Mappings as blocks, everything else as JSON, which YAML reads.
function yaml(value, indent) {
  return Object.entries(value).map(([key, each]) => (each !== null && typeof each === "object" && !Array.isArray(each) && Object.keys(each).length
    ? `${indent}${JSON.stringify(key)}:\n${yaml(each, `${indent}  `)}` : `${indent}${JSON.stringify(key)}: ${JSON.stringify(each)}\n`)).join("");
}

function python(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((each) => python(each, indent)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const next = `${indent}    `;
  return `{\n${Object.entries(value).map(([key, each]) => `${next}${JSON.stringify(key)}: ${python(each, next)},\n`).join("")}${indent}}`;
}

function receiptSection(report) {
  const seconds = Object.entries(report.seconds ?? {});
  const solver = report.solver ?? {};
  return section("receipt", "Receipt",
    el("div", { class: "columns" },
      seconds.length ? table("Wall time of each stage", seconds, [["stage", (row) => row[0]], ["seconds", (row) => (known(row[1]) ? row[1].toFixed(1) : row[1]), "number"]]) : null,
      table("The proof", ["status", "predicted_loss", "lower_bound", "gap", "nodes"].filter((name) => name in solver), [["of the allocation", (name) => words(name)], ["value", (name) => solver[name], "number"]]),
      ...Object.entries(report.receipt ?? {}).filter(([, value]) => value !== null && typeof value === "object").map(([name, value]) =>
        table(capital(words(name)), Object.entries(value), [["name", (row) => row[0]], ["value", (row) => row[1], known(Object.values(value)[0]) ? "number" : "text"]]))),
    ...Object.entries(report.receipt ?? {}).filter(([, value]) => value === null || typeof value !== "object").map(([name, value]) => el("p", { class: "quiet" }, `${capital(words(name))}: ${value}`)),
    el("p", { class: "quiet" }, `Report version ${report.version}. Drawn by Observable Plot 0.6.17 and D3 7.9.0 (ISC licence, in this file).`));
}

"use strict";
// The page of a sweep. Every number on it comes from the JSON in the page, which is sweep.json.

const LOSSES = { measured_loss: "measured loss", predicted_loss: "predicted loss" };
const PALETTE = ["var(--accent)", "var(--second)", "var(--third)", "var(--fourth)", "var(--b5)", "var(--b7)", "var(--b16)"];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye"];

start((sweep, main) => {
  const jobs = sweep.jobs.filter((job) => job.model);
  document.title = `lightning_mpq: sweep of ${count(sweep.jobs.length, "job")}`;
  const choices = [...sweep.metrics.map((name) => [name, name]), ...Object.entries(LOSSES)];
  const valueOf = (row, name) => (name in LOSSES ? row[name] : row.metrics?.[name]);
  const chooser = (id, label, options, change) => el("div", {}, el("label", { for: id }, label),
    el("select", { id, onchange: change }, options.map(([value, text]) => el("option", { value }, text))));
  const place = el("div", {});
  const draw = () => place.replaceChildren(picture());
  const preferred = choices.findIndex(([name]) => name.includes("acc"));
  const vertical = chooser("vertical", "Upwards", choices, draw);
  const colour = chooser("colour", "Coloured by", sweep.swept.map((name) => [name, name]), draw);
  vertical.querySelector("select").selectedIndex = Math.max(0, preferred);

  function picture() {
    const name = vertical.querySelector("select").value, by = colour.querySelector("select").value;
    const shown = jobs.filter((job) => known(valueOf(job.model, name)));
    const groups = [...new Set(shown.map((job) => job.settings[by] ?? ""))];
    const largest = d3.max(shown, (job) => job.model.stored_bytes) ?? 1, [unit, word] = largest < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
    const at = (job) => groups.indexOf(job.settings[by] ?? "") % PALETTE.length;
    const floats = (sweep.floats ?? []).filter((row) => known(valueOf(row, name)) && !(name in LOSSES));
    const scale = name in LOSSES ? lossScale(shown.map((job) => valueOf(job.model, name)), LOSSES[name]) : { label: name, grid: true, nice: true };
    const plot = drawing(`${LOSSES[name] ?? name} over stored bytes of ${count(shown.length, "job")}; the table below has the numbers.`, {
      height: 380, marginLeft: 60, marginBottom: 40, marginRight: 24, x: { label: `stored ${word}`, grid: true, nice: true }, y: scale, symbol: { type: "identity" },
      marks: [
        Plot.ruleY(floats, { y: (row) => valueOf(row, name), stroke: "var(--quiet)", strokeDasharray: "4 3" }),
        Plot.dot(shown, { x: (job) => job.model.stored_bytes / unit, y: (job) => valueOf(job.model, name), r: 6, fill: (job) => PALETTE[at(job)], symbol: (job) => SYMBOLS[at(job)],
          href: (job) => job.page, title: (job) => `${job.name}: ${Object.entries(job.settings).filter(([key]) => sweep.swept.includes(key)).map(([key, value]) => `${key}=${value}`).join(", ")}; ${name} ${number(valueOf(job.model, name))}` }),
      ],
    });
    plot.setAttribute("role", "group"); // its points are links, and stay so
    plot.querySelectorAll("a").forEach((link, index) => link.setAttribute("aria-label", `Page of job ${shown[index]?.name}`));
    return el("div", {}, plot, el("ul", { class: "legend" }, groups.map((group, index) => el("li", {},
      el("span", { class: "swatch", style: `background:${PALETTE[index % PALETTE.length]}`, "aria-hidden": "true" }), by ? `${by}=${group || "(not set)"}` : "job"))),
      floats.length ? el("p", { class: "quiet" }, `Dashed: the float model${floats.length > 1 ? "s" : ""}, ${floats.map((row) => `${megabytes(row.stored_bytes)}, ${number(valueOf(row, name))}`).join("; ")}.`) : null);
  }

  addEventListener("resize", draw);
  const best = jobs.filter((job) => known(job.model.stored_bytes)).sort((a, b) => a.model.stored_bytes - b.model.stored_bytes);
  const smallest = best[0];
  main.append(...[
    el("header", {}, el("h1", {}, `Sweep of ${count(sweep.jobs.length, "job")}`),
      el("p", {}, `${sweep.swept.length ? `Swept: ${sweep.swept.join(", ")}. ` : ""}${smallest ? `The smallest model, ${smallest.name}, stores ${megabytes(smallest.model.stored_bytes)}.` : ""}`)),
    section("picture", "What a byte buys", jobs.length ? el("div", { class: "panel columns screen" }, vertical, sweep.swept.length ? colour : null) : el("p", {}, "No job left a report."),
      jobs.length ? figure("Each point is a job; a click opens its page. So do the links in the table.", place) : null),
    section("jobs", "The jobs", table("All jobs of the sweep", sweep.jobs, [
      ["job", (job) => (job.page ? el("a", { href: job.page.split("/").map(encodeURIComponent).join("/") }, job.name) : job.name)],
      ...sweep.swept.map((name) => [name, (job) => job.settings[name] ?? ""]),
      ["bits per weight", (job) => job.model?.average_bits, "number"], ["bytes", (job) => job.model?.stored_bytes, "number"],
      ["predicted loss", (job) => job.model?.predicted_loss, "number"], ["measured loss", (job) => job.model?.measured_loss, "number"],
      ...sweep.metrics.map((name) => [name, (job) => job.model?.metrics?.[name], "number"]),
      ...(sweep.jobs.some((job) => job.problem) ? [["problem", (job) => job.problem]] : []),
    ])),
    el("p", { class: "quiet" }, "Drawn by Observable Plot 0.6.17 and D3 7.9.0 (ISC licence, in this file)."),
  ]);
  draw();
});

"use strict";

// --- figures ------------------------------------------------------------------------------------------------------

const FIGURES = JSON.parse(document.getElementById("figures").textContent);
// Colours of the figures that have another shade on a dark background.
const THEMED = {
  "#000000": "--ink", "#7F7F7F": "--grey", "#882255": "--wine", "#0072B2": "--blue", "#EEEEEE": "--strip",
};
const NARROWEST = 330, NARROWEST_NAMED = 250; // pixels of a panel; of one whose names stand left of the first

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The same figure with the page's colours; an opacity of two digits may follow a colour. */
function themed(value) {
  if (Array.isArray(value)) return value.map(themed);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
  }
  if (typeof value === "string" && THEMED[value.slice(0, 7)]) return css(THEMED[value.slice(0, 7)]) + value.slice(7);
  return value;
}

/** Text in lines of at most `width` characters, broken between words. */
function wrapped(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (longer.length > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines.join("<br>");
}

function draw(box) {
  const figure = FIGURES[box.id], width = box.clientWidth, count = figure.panels.length;
  const named = figure.rows.length > 0;
  const fitting = Math.floor(width / (named ? NARROWEST_NAMED : NARROWEST));
  const columns = Math.max(1, Math.min(figure.columns, count, fitting)), lines = Math.ceil(count / columns);
  const names = figure.rows.map((name) => wrapped(name, width < 500 ? 16 : 30));
  const folds = Math.max(0, ...names.map((name) => name.split("<br>").length - 1));
  const beside = 7 * Math.max(0, ...names.flatMap((name) => name.split("<br>").map((line) => line.length)));
  const titles = figure.panels.map((panel) => wrapped(panel.title, Math.floor((width - beside) / columns / 8)));
  const taller = 17 * Math.max(0, ...titles.map((title) => title.split("<br>").length - 2)); // than titles of two lines
  const height = figure.height + 13 * folds * names.length + taller;
  const seen = new Set(), traces = [];
  const text = { color: css("--ink"), size: 13, family: getComputedStyle(document.body).fontFamily };
  const axis = {
    color: css("--muted"), gridcolor: css("--rule"), linecolor: css("--rule"), zeroline: false, automargin: true,
    tickfont: { size: 12 },
  };
  const layout = {
    width, font: text, paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", shapes: [], annotations: [],
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--rule"), font: { color: css("--ink") } },
    modebar: { bgcolor: "transparent", color: css("--muted"), activecolor: css("--ink") },
    grid: { rows: lines, columns, pattern: "independent", xgap: named ? 0.06 : 0.22, ygap: (100 + taller) / height },
  };
  figure.panels.forEach((panel, place) => {
    const number = place ? place + 1 : "", x = `x${number}`, y = `y${number}`;
    for (const trace of panel.traces) {
      const shown = trace.showlegend !== false && !seen.has(trace.name);
      if (shown) seen.add(trace.name);
      traces.push({ type: "scatter", ...trace, xaxis: x, yaxis: y, legendgroup: trace.name, showlegend: shown });
    }
    for (const [name, given] of [["xaxis", panel.x], ["yaxis", panel.y]]) {
      const title = { ...given.title, font: { size: 13 }, standoff: 8 };
      layout[name + number] = { ...axis, ...given, title };
    }
    if (named) {
      Object.assign(layout[`yaxis${number}`], {
        tickvals: figure.rows, ticktext: names, showticklabels: place % columns === 0,
      });
    }
    layout.shapes.push(...panel.shapes.map((s) => ({ ...s, xref: x, yref: `${y} domain`, layer: "below" })));
    if (panel.title) {
      layout.annotations.push({
        text: titles[place], xref: `${x} domain`, yref: `${y} domain`,
        x: 0, y: 1, yshift: 4, xanchor: "left", yanchor: "bottom", align: "left", showarrow: false, font: { size: 13 },
      });
    }
  });
  const entries = [...seen], across = Math.max(1, Math.floor(width / (48 + 7 * Math.max(0, ...entries.map((e) => e.length)))));
  const legend = entries.length > 1 ? 21 * Math.ceil(entries.length / across) + 16 : 0;
  layout.showlegend = legend > 0;
  layout.legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, xanchor: "left", font: { size: 12 } };
  layout.margin = { t: 44 + taller, r: 12, l: 56, b: 52 + legend };
  layout.height = lines * height + legend;
  const config = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  Plotly.react(box, themed(traces), themed(layout), config);
  box.dataset.drawn = "";
}

const boxes = [...document.querySelectorAll(".plot")];
const drawn = () => boxes.filter((box) => "drawn" in box.dataset);
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px" });
boxes.forEach((box) => watcher.observe(box));

let known = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== known) drawn().forEach(draw);
  known = innerWidth;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn().forEach(draw));
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  boxes.forEach(draw);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  boxes.forEach(draw);
});

// --- tables -------------------------------------------------------------------------------------------------------

/** A cell's number, else its text. */
const keyOf = (cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim());

/** Order of two keys: numbers before words, nothing last whatever the direction. */
function compare(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      for (const body of table.tBodies) { // of a section each, in the table of claims, below its title
        const rows = [...body.rows].filter((row) => row.cells.length === headings.length);
        const keyed = rows.map((row) => [keyOf(row.cells[place]), row]);
        keyed.sort(([a], [b]) => compare(a, b, direction));
        body.append(...keyed.map(([, row]) => row));
      }
    });
  });
}

// --- links into what is folded --------------------------------------------------------------------------------------

function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let folded = target?.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
// The contents take the page's whole width on a phone.
if (innerWidth < 1100) document.querySelector("nav details").open = false;

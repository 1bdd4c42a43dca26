"use strict";
/* What every script of the page shares. Figures are plain data: colours are CSS variables ({css: NAME}), long series are
   columns ({column: NAME, every: N}) and texts are looked up ({says: [KEY, ...]}), so that a figure follows the reader's
   light or dark setting and no series is stored twice. */
window.report = (() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const narrow = matchMedia("(max-width: 640px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();
  const listeners = [];
  let selected = null;

  const plain = text =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const colour = name => getComputedStyle(root).getPropertyValue("--" + name.replace(/^--/, "")).trim();
  const thinned = (series, every) => (every > 1 ? series.filter((_, row) => row % every === 0) : series);
  const resolve = value => {
    if (Array.isArray(value)) return value.map(resolve);
    if (value === null || typeof value !== "object") return value;
    if ("css" in value) return colour(value.css);
    if ("says" in value) return value.says.map(key => data.says[key]);
    if ("column" in value) return thinned(data.columns[value.column], value.every || 1);
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, resolve(each)]));
  };

  const dress = (traces, layout) => {
    for (const trace of traces) {
      if (narrow.matches && trace.mode === "markers+text") trace.mode = "markers";
      if (narrow.matches && trace.type === "heatmap" && trace.x.length > 7) delete trace.texttemplate;
    }
    for (const [name, axis] of Object.entries(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      axis.automargin = true;
      axis.gridcolor = axis.zerolinecolor = axis.linecolor = colour("grid");
      if (axis.title) axis.title = { standoff: 8, ...axis.title, font: { size: narrow.matches ? 11 : 13 } };
    }
    return Object.assign(layout, {
      autosize: true,
      showlegend: false,
      hovermode: "closest",
      dragmode: narrow.matches ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), size: 12, family: "system-ui, sans-serif" },
      hoverlabel: {
        bgcolor: colour("card"), bordercolor: colour("muted"), font: { color: colour("ink") }, align: "left",
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
      margin: { l: 40, r: 12, t: 12, b: 40, ...(layout.margin || {}) },
    });
  };

  const redraw = id => {
    const box = document.getElementById(id);
    const { traces, layout, options } = drawn.get(id);
    if (!box || !box.offsetParent) return; // out of sight: it is drawn when it is shown
    const shown = resolve(traces);
    Plotly.react(box, shown, dress(shown, resolve(layout)), {
      responsive: true,
      displaylogo: false,
      showSendToCloud: false,
      plotlyServerURL: "",
      displayModeBar: options.tools && !narrow.matches ? "hover" : false,
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
  };
  const plot = (id, traces, layout, options = {}) => {
    drawn.set(id, { traces, layout, options });
    redraw(id);
  };
  const redrawAll = () => {
    for (const id of drawn.keys()) redraw(id);
    for (const listener of listeners) listener();
  };

  /* What a candidate is made of, in words: its methods; mean and range of each expert's coefficient; densities. */
  const recipe = id => {
    const layers = data.layers;
    const found = layers && layers.candidates[layers.same[id] ?? id];
    if (!found) return [];
    const list = each => (Array.isArray(each) ? each : [each]).filter(value => value !== null && value !== undefined);
    const number = value => (value / 1000).toFixed(2).replace("-", "\u2212");
    const spread = each => {
      const values = list(each);
      if (!values.length) return null;
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return low === high ? number(low) : number(mean) + " (" + number(low) + " to " + number(high) + ")";
    };
    const named = given => layers.experts
      .map((expert, index) => [expert, spread((given || [])[index])])
      .filter(([, text]) => text !== null)
      .map(([expert, text]) => expert + " " + text);
    const coefficients = named(found.c), densities = named(found.d);
    return [
      [...new Set(list(found.m))].map(each => layers.methods[each][0]).join(", "),
      ...(coefficients.length ? ["coefficients: " + coefficients.join(", ")] : []),
      ...(densities.length ? ["densities: " + densities.join(", ")] : []),
    ];
  };

  /* Fills a select box with the candidates that a section can show, under their headings. */
  const offer = (box, { choices }, says, more) => {
    const groups = choices.map(([heading, ids]) => {
      const group = document.createElement("optgroup");
      group.label = heading;
      group.append(...ids.map(id => new Option(says(id), id)));
      return group;
    });
    if (more) box.append(...groups);
    else box.replaceChildren(...groups);
  };

  /* A candidate is selected everywhere at once: figures and tables listen to the document's event "candidate". */
  const select = id => {
    selected = id;
    for (const row of document.querySelectorAll("tr[aria-current]")) row.removeAttribute("aria-current");
    for (const button of document.querySelectorAll("[data-candidate]")) {
      const row = button.closest("tr");
      if (row && Number(button.dataset.candidate) === id) row.setAttribute("aria-current", "true");
    }
    document.dispatchEvent(new CustomEvent("candidate", { detail: id }));
  };
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-candidate]");
    if (button) select(Number(button.dataset.candidate));
  });

  dark.addEventListener("change", redrawAll);
  narrow.addEventListener("change", redrawAll);
  /* paper is white and cannot be clicked: figures are redrawn in the light colours, and tables opened */
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(.fill)")];
    for (const each of opened) each.open = true;
    root.classList.add("print");
    redrawAll();
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
    root.classList.remove("print");
    redrawAll();
  });
  document.addEventListener("toggle", event => {
    for (const id of drawn.keys()) if (event.target.contains(document.getElementById(id))) redraw(id);
  }, true);

  /* after every other script of the page has prepared what the figures look up */
  addEventListener("DOMContentLoaded", () => {
    for (const figure of data.figures) plot(figure.id, figure.traces, figure.layout, { tools: figure.tools });
  });
  return {
    data, colour, offer, plain, plot, recipe, redraw, resolve, select,
    onTheme: callback => listeners.push(callback),
    get selected() { return selected; },
    get narrow() { return narrow.matches; },
  };
})();

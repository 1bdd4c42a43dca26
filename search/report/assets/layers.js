"use strict";
/* The layers of any candidate, alone or as the difference to another one. */
(() => {
  const layers = report.data.layers;
  if (!layers) return;
  const STEP = 1000;
  const HUES = ["front", "chosen", "reference", "baseline", "muted", "heat-high", "heat-low", "faint"];
  const by = id => document.getElementById(id);
  const [boxes, other, view] = ["layers-candidate", "layers-other", "layers-view"].map(by);
  const many = layers.methods.length > 1;

  const whole = value => (Array.isArray(value) ? value : new Array(layers.groups.length).fill(value ?? null));
  const numbers = (id, what) =>
    (layers.candidates[id][what] || layers.experts.map(() => null)).map(each =>
      whole(each).map(value => (value === null ? null : value / STEP)));
  const methods = id => whole(layers.candidates[id].m);
  const says = id => "candidate " + id + (layers.names[id] ? " \u00b7 " + layers.names[id] : "");
  const digits = (value, signed) =>
    value === null ? "\u2013" : ((signed && value > 0 ? "+" : "") + value.toFixed(2)).replace("-", "\u2212");

  const grid = values => {
    const cells = layers.rows.map(() => new Array(layers.columns.length).fill(null));
    layers.places.forEach(([row, column], group) => { cells[row][column] = values[group]; });
    return cells;
  };
  const colours = (low, high) => {
    const zero = high > low ? (0 - low) / (high - low) : 0;
    const below = zero > 0 ? [[0, { css: "heat-low" }]] : [];
    if (zero < 1) return [...below, [zero, { css: "heat-zero" }], [1, { css: "heat-high" }]];
    return [...below, [1, { css: "heat-zero" }]];
  };
  const axes = title => ({
    title: { text: report.plain(title), font: { size: 14 }, x: 0, xref: "paper", xanchor: "left" },
    margin: { t: 34 },
    /* all places are there also where every cell is empty */
    xaxis: { type: "category", title: { text: "depth" }, showgrid: false, categoryorder: "array",
      categoryarray: layers.columns, range: [-0.5, layers.columns.length - 0.5] },
    yaxis: { type: "category", showgrid: false, categoryorder: "array", categoryarray: layers.rows,
      range: [layers.rows.length - 0.5, -0.5] },
  });

  const heat = (index, values, ends, signed, hover) => {
    const label = layers.experts[index];
    const trace = {
      type: "heatmap", x: layers.columns, y: layers.rows, z: grid(values), zmin: ends[0], zmax: ends[1],
      hovertext: grid(hover).map(row => row.map(each => (each === null ? "" : each))),
      hoverinfo: "text", hoverongaps: false, showscale: false, xgap: 2, ygap: 2, colorscale: colours(...ends),
    };
    if (layers.columns.length <= 14) {
      trace.text = grid(values.map(each => (each === null ? "" : digits(each, signed)))).map(
        row => row.map(each => each ?? ""));
      Object.assign(trace, { texttemplate: "%{text}", textfont: { size: 11, color: { css: "ink" } } });
    }
    report.plot("layers-" + index, [trace], axes(label));
  };

  const drawMethods = (own, compared) => {
    const differs = own.map((each, group) => compared === null || each !== compared[group]);
    const letter = each => layers.methods[each][1];
    const texts = own.map((each, group) =>
      compared === null ? letter(each) : differs[group] ? letter(compared[group]) + "\u2192" + letter(each) : "");
    const hover = own.map((each, group) => report.plain(layers.groups[group] + ": " + layers.methods[each][0] +
      (compared !== null && differs[group] ? ", there " + layers.methods[compared[group]][0] : "")));
    const count = layers.methods.length;
    const scale = layers.methods.flatMap((_, each) => {
      const hue = { css: HUES[each % HUES.length] };
      return [[each / count, hue], [(each + 1) / count, hue]];
    });
    const trace = {
      type: "heatmap", x: layers.columns, y: layers.rows, z: grid(own.map((each, group) => (differs[group] ? each : null))),
      zmin: -0.5, zmax: count - 0.5, colorscale: scale, opacity: 0.45, showscale: false, xgap: 2, ygap: 2,
      hovertext: grid(hover).map(row => row.map(each => each ?? "")), hoverinfo: "text", hoverongaps: false,
    };
    if (layers.columns.length <= 40) {
      trace.text = grid(texts).map(row => row.map(each => each ?? ""));
      Object.assign(trace, { texttemplate: "%{text}", textfont: { size: compared === null ? 12 : 10, color: { css: "ink" } } });
    }
    const none = differs.some(each => each) ? [] : [{
      text: "the same everywhere", showarrow: false, x: 0.5, y: 0.5, xref: "paper", yref: "paper",
      font: { color: { css: "muted" } },
    }];
    report.plot("layers-methods", [trace], { ...axes("method"), annotations: none });
  };

  const drawScale = (what, ends, signed) => {
    const box = by("layers-scale"), bar = document.createElement("span"), zero = 100 * (0 - ends[0]) / (ends[1] - ends[0] || 1);
    const stops = (ends[0] < 0 ? ["var(--heat-low)"] : []).concat("var(--heat-zero) " + zero.toFixed(1) + "%", "var(--heat-high)");
    bar.className = "bar";
    bar.style.background = "linear-gradient(90deg," + stops.join(",") + ")";
    box.replaceChildren((signed ? "difference of the " : "") + what + " " + digits(ends[0], signed) + " ", bar,
      " " + digits(ends[1], signed));
  };

  const drawTable = (id, against) => {
    const table = by("layers-table").querySelector("table");
    const differences = (what, index) => values(id, against, what)[index];
    const dense = layers.experts.map((_, index) => index).filter(index =>
      [id, against].some(each => each !== null && numbers(each, "d")[index].some(value => value !== null)));
    const signed = against !== null;
    const head = table.tHead.rows[0];
    const titles = ["group", "method", ...layers.experts, ...dense.map(index => "density of " + layers.experts[index])];
    head.replaceChildren(...titles.map(title => cell("th", title, "col")));
    const own = methods(id), there = against === null ? null : methods(against);
    table.tBodies[0].replaceChildren(...layers.groups.map((group, place) => {
      const line = document.createElement("tr");
      const name = layers.methods[own[place]][0];
      const method = there === null || there[place] === own[place] ? name : layers.methods[there[place]][0] + " \u2192 " + name;
      line.append(cell("th", group, "row"), cell("td", method),
        ...layers.experts.map((_, index) => cell("td", digits(differences("c", index)[place], signed))),
        ...dense.map(index => cell("td", digits(differences("d", index)[place], signed))));
      return line;
    }));
    table.caption.textContent = (signed ? "Difference, " : "") + describe(id, against) + ": coefficient" +
      (dense.length ? " and density" : "") + " of each expert in each group";
  };
  const cell = (tag, text, scope) => {
    const made = document.createElement(tag);
    if (scope) made.scope = scope;
    made.textContent = text;
    return made;
  };

  /* [experts][groups]; a number and nothing make no difference */
  const values = (id, against, what) => {
    const own = numbers(id, what);
    if (against === null) return own;
    const there = numbers(against, what);
    return own.map((each, index) => each.map((value, group) =>
      value === null || there[index][group] === null ? null : value - there[index][group]));
  };
  const describe = (id, against) => says(id) + (against === null ? "" : " minus " + says(against));

  let shown = layers.shown, compared = null;
  const draw = () => {
    const density = view !== null && view.value === "density", what = density ? "density" : "coefficient";
    const signed = compared !== null;
    const found = values(shown, compared, density ? "d" : "c");
    const most = Math.max(0.01, ...found.flat().filter(each => each !== null).map(Math.abs));
    const ends = signed ? [-most, most] : density ? [0, 1] : layers.ends;
    const own = methods(shown), texts = [numbers(shown, "c"), numbers(shown, "d")];
    layers.experts.forEach((expert, index) => {
      const hover = layers.groups.map((group, place) => {
        const kept = texts[1][index][place];
        return report.plain(expert + " in " + group + ": " + digits(texts[0][index][place]) + " (" +
          layers.methods[own[place]][0] + (kept === null ? "" : ", density " + digits(kept)) + ")" +
          (signed ? "; difference " + digits(found[index][place], true) : ""));
      });
      heat(index, found[index], ends, signed, hover);
      by("layers-" + index).setAttribute("aria-label",
        "Heatmap of " + expert + ", " + what + ", " + describe(shown, compared) + "; its numbers are in the table below it");
    });
    if (many) drawMethods(own, signed ? methods(compared) : null);
    drawScale(what, ends, signed);
    drawTable(shown, compared);
    const apart = layers.candidates[shown].t;
    by("layers-says").textContent = describe(shown, compared) +
      (apart ? "; tensors set apart from their group: " + apart : "");
    boxes.value = String(shown);
  };

  report.offer(boxes, layers, says);
  report.offer(other, layers, says, true);
  if (many) {
    by("layers-letters").replaceChildren(...layers.methods.map(([name, letter]) => {
      const line = document.createElement("li"), key = document.createElement("b");
      key.textContent = letter;
      line.append(key, " " + name);
      return line;
    }));
  }
  boxes.addEventListener("change", () => report.select(Number(boxes.value)));
  other.addEventListener("change", () => { compared = other.value === "" ? null : Number(other.value); draw(); });
  if (view) view.addEventListener("change", draw);
  document.addEventListener("candidate", event => {
    const id = layers.same[event.detail] ?? event.detail;
    if (id in layers.candidates) {
      shown = id;
      draw();
    } else {
      by("layers-says").textContent = "The layers of candidate " + event.detail +
        " are not in this file, to keep it small; still shown: " + describe(shown, compared) + ".";
    }
  });
  draw();
})();

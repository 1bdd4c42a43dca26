"use strict";
/* The front: what its marks say, the switch between views, rings around the selected and the recommended candidate. */
(() => {
  const { columns, names, decimals, stages, front } = report.data;
  const by = id => document.getElementById(id);
  const rows = new Map(columns.id.map((id, row) => [id, row]));
  let view = front.view;
  let recommended = null;

  /* [value, low, high], the limits in units of the last digit shown */
  const score = (given, index) => {
    if (!given || given[0] === null) return "not measured";
    const digits = value => value.toFixed(decimals[index]).replace("-", "\u2212");
    const [value, low, high] = given, unit = 10 ** -decimals[index];
    if (low === undefined || high === undefined) return digits(value);
    if (low === null || high === null) return digits(value) + " (interval unknown)";
    return digits(value) + " (" + digits(low * unit) + " to " + digits(high * unit) + ")";
  };
  const searched = id => {
    const row = rows.get(id);
    return row === undefined ? null : names.map((_, index) => ["s", "l", "h"].map(key => columns[key + index][row]));
  };
  /* where a candidate stands: its mark in this view, else its dot */
  const placeOf = (id, wanted = view) => {
    const mark = (front.places[id] || {})[wanted];
    if (mark) return mark;
    const scores = wanted === front.view && searched(id);
    return scores ? { split: "search", scores } : null;
  };
  const stageOf = id => (rows.has(id) ? stages[columns.stage[rows.get(id)]] : null);
  const titleOf = id => "candidate " + id + (front.names[id] ? " \u00b7 " + front.names[id] : "");
  const scoresOf = place => names.map((name, index) => name + " " + score(place.scores[index], index));
  const isBroken = id => rows.has(id) && columns.broken[rows.get(id)] === 1;

  const says = (id, place) => [
    titleOf(id),
    (stageOf(id) ? "stage " + stageOf(id) + ", " : "") + place.split + " scores" +
      (place.scores.some(each => each && each[1] !== undefined) ? ", 95 % intervals" : ""),
    ...scoresOf(place),
    ...(isBroken(id) ? ["breaks a constraint"] : []),
    ...report.recipe(id),
  ].map(report.plain).join("<br>");

  columns.symbol = columns.broken.map(broken => (broken ? "circle-open" : "circle"));
  columns.spread = columns.id.map(id => ((id * 0.618034) % 1 - 0.5) * 0.6);
  columns.hover = columns.id.map(id => says(id, { split: "search", scores: searched(id) }));
  for (const [id, views] of Object.entries(front.places))
    for (const [name, place] of Object.entries(views)) report.data.says[name + ":" + id] = says(Number(id), place);

  /* rings are shapes: to move one redraws nothing else */
  const ring = (figure, id, colour, size) => {
    const { x, y, rows: lines } = figure.layout.meta;
    const place = id === null || x === undefined ? null : placeOf(id);
    if (!place || !place.scores[x]) return [];
    const across = place.scores[x][0];
    const row = rows.get(id);
    const up = lines ? (lines[id] ?? columns.spread[row]) : place.scores[y] && place.scores[y][0];
    if (across === null || up === null || up === undefined) return [];
    return [{
      type: "circle", xref: "x", yref: "y", xsizemode: "pixel", ysizemode: "pixel", xanchor: across, yanchor: up,
      x0: -size, x1: size, y0: -size, y1: size, line: { width: 3, color: { css: colour } },
    }];
  };
  const drawings = report.data.figures.filter(each => /^front-\d+$/.test(each.id));
  const rings = () => {
    for (const figure of drawings) {
      figure.layout.shapes = [
        ...ring(figure, recommended, "recommended", 16), ...ring(figure, report.selected, "ink", 12),
      ];
      const box = by(figure.id);
      if (box.data) Plotly.relayout(box, { shapes: report.resolve(figure.layout.shapes) });
    }
  };
  const switchTo = wanted => {
    view = wanted;
    for (const figure of drawings) {
      for (const trace of figure.traces) trace.visible = trace.meta.view === view;
      report.redraw(figure.id);
    }
    rings();
  };

  const tell = id => {
    const panel = by("candidate-panel");
    const parts = [];
    for (const split of Object.keys(front.places[id] || {})) parts.push(front.places[id][split]);
    if (!parts.length && searched(id)) parts.push({ split: "search", scores: searched(id) });
    const title = document.createElement("strong");
    title.textContent = titleOf(id);
    const lines = [
      stageOf(id) ? "stage " + stageOf(id) : "not scored in full",
      ...(isBroken(id) ? ["breaks a constraint"] : []),
      ...parts.map(place => place.split + ": " + scoresOf(place).join(", ")),
      ...report.recipe(id),
    ];
    panel.replaceChildren(title, ". " + lines.join(". ") + ".");
  };

  const listen = box => {
    if (box.heard || !box.on) return;
    box.heard = true;
    box.on("plotly_click", event => {
      const id = event.points.length ? event.points[0].customdata : undefined;
      if (id !== undefined && id !== null) report.select(id);
    });
  };
  const choose = id => {
    for (const figure of drawings) {
      if (!("y" in figure.layout.meta)) continue;
      by(figure.id).hidden = figure.id !== id;
    }
    report.redraw(id);
    listen(by(id));
    rings();
  };

  const fill = event => {
    const table = by("all-candidates");
    if (!event.target.open || table.rows.length) return;
    const line = (cells, tag) => {
      const row = document.createElement("tr");
      cells.forEach((text, place) => {
        const cell = document.createElement(place ? tag : "th");
        if (tag === "th" || !place) cell.scope = tag === "th" ? "col" : "row";
        if (tag === "td" && !place) {
          const button = document.createElement("button");
          Object.assign(button, { type: "button", className: "candidate", title: "Select candidate " + text });
          button.dataset.candidate = text;
          button.textContent = text;
          cell.append(button);
        } else {
          cell.textContent = text;
        }
        row.append(cell);
      });
      return row;
    };
    table.createTHead().append(line(["candidate", "label", "stage", "constraints", ...names], "th"));
    table.createTBody().append(...columns.id.map((id, row) => line([
      id, columns.label[row], stages[columns.stage[row]], columns.broken[row] ? "broken" : "kept",
      ...searched(id).map(score),
    ], "td")));
  };

  document.querySelectorAll("details.fill").forEach(each => each.addEventListener("toggle", fill));
  for (const cell of document.querySelectorAll("[data-recipe]"))
    cell.textContent = report.recipe(Number(cell.dataset.recipe)).join("; ") || "not in this file";
  for (const input of document.querySelectorAll("input[name=front-view]"))
    input.addEventListener("change", () => switchTo(input.value));
  if (by("front-pair")) by("front-pair").addEventListener("change", event => choose(event.target.value));
  document.addEventListener("candidate", event => { tell(event.detail); rings(); });
  document.addEventListener("recommended", event => { recommended = event.detail; rings(); });
  addEventListener("DOMContentLoaded", () => {
    for (const figure of drawings) listen(by(figure.id));
    rings();
  });
})();

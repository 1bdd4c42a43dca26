"use strict";
/* The path of any candidate, alone or beside that of another one. */
(() => {
  const paths = report.data.path;
  if (!paths) return;
  const STEP = 1000;
  const { hopsOf, short, whole, counts, rows, hundredths } = report.path;
  const by = id => document.getElementById(id);
  const [boxes, other] = ["path-candidate", "path-other"].map(by);
  const says = id => "candidate " + id + (paths.names[id] ? " \u00b7 " + paths.names[id] : "");
  const scaled = paths.ends[0] !== STEP || paths.ends[1] !== STEP;
  const nth = number => (number === 1 ? "" : ", for the " + number + (["th", "st", "nd", "rd"][number] || "th") + " time");

  /* a tick every 1, 2, 5, 10, … so that they find room on a phone, too */
  const every = most => {
    for (let step = 1; ; step *= 10) for (const each of [step, 2 * step, 5 * step]) if (most / each <= 11) return each;
  };
  const axis = (title, most, more) => ({
    title: { text: title }, range: [-0.7, most - 0.3], tick0: 0, dtick: every(most), zeroline: false, ...more,
  });
  const layout = () => ({
    bargap: 0.35,
    margin: { l: 44 },
    xaxis: axis("hop, and block of the result", paths.longest, { anchor: scaled ? "y2" : "y", showgrid: false }),
    yaxis: axis("layer of its model", paths.layers, scaled ? { domain: [0.34, 1] } : {}),
    ...(scaled ? {
      yaxis2: {
        title: { text: "scale" }, domain: [0, 0.24], zeroline: false, nticks: 4,
        range: [paths.ends[0] / STEP - 0.05, paths.ends[1] / STEP + 0.05],
      },
      shapes: [{
        type: "line", xref: "paper", x0: 0, x1: 1, yref: "y2", y0: 1, y1: 1, line: { width: 1, color: { css: "muted" } },
      }],
    } : {}),
  });
  const line = (x, y, look) => ({ type: "scatter", mode: "lines", x, y, hoverinfo: "skip", line: look });

  const traces = (hops, against) => {
    const own = [...Array(paths.layers).keys()];
    const most = Math.max(hops.length, against ? against.length : 0);
    const size = Math.max(5, Math.min(11, 420 / most));
    const found = [line(own, own, { width: 1, dash: "dot", color: { css: "muted" } })];
    const place = some => [some.map((_, at) => at), some.map(hop => hop.layer)];
    if (against) {
      found.push(line(...place(against), { width: 1, dash: "dash", color: { css: "faint" } }), {
        type: "scatter", mode: "markers", x: place(against)[0], y: place(against)[1],
        hoverinfo: "text", hovertext: hover(against, says(compared) + ": "),
        marker: {
          symbol: against.map(hop => paths.looks[hop.model][0] + "-open"), size: size + 4, color: { css: "muted" },
          line: { width: 1 },
        },
      });
      if (scaled) found.push({
        type: "scatter", mode: "markers", yaxis: "y2", x: place(against)[0], y: against.map(hop => hop.scale / STEP),
        hoverinfo: "text", hovertext: hover(against, says(compared) + ": "),
        marker: { symbol: "line-ew-open", size, color: { css: "ink" }, line: { width: 2, color: { css: "ink" } } },
      });
    }
    found.push(line(...place(hops), { width: 1, color: { css: "faint" } }));
    const texts = hover(hops, "");
    paths.models.forEach((_, model) => {
      const [symbol, colour] = paths.looks[model];
      const mine = hops.map((hop, at) => [hop, at]).filter(([hop]) => hop.model === model);
      const common = {
        x: mine.map(([, at]) => at), hoverinfo: "text", hovertext: mine.map(([, at]) => texts[at]),
        marker: { color: { css: colour } },
      };
      if (!mine.length) return;
      found.push({
        ...common, type: "scatter", mode: "markers", y: mine.map(([hop]) => hop.layer),
        marker: { ...common.marker, symbol, size },
      });
      if (scaled) found.push({
        ...common, type: "bar", yaxis: "y2", base: 1, y: mine.map(([hop]) => hop.scale / STEP - 1),
      });
    });
    return found;
  };
  const hover = (hops, start) => {
    const often = new Map();
    return hops.map((hop, at) => {
      const key = hop.model + " " + hop.layer;
      often.set(key, (often.get(key) || 0) + 1);
      return report.plain(start + "hop " + at + ": " + paths.models[hop.model] + ", layer " + hop.layer +
        nth(often.get(key)) + (scaled ? "; scale " + hundredths(hop.scale) : ""));
    });
  };
  const cell = (tag, content, scope) => {
    const made = document.createElement(tag);
    if (scope) made.scope = scope;
    made.textContent = content;
    return made;
  };
  const drawTable = hops => {
    by("path-table").querySelector("tbody").replaceChildren(...rows(hops).map(([first, ...rest]) => {
      const made = document.createElement("tr");
      made.append(cell("th", first, "row"), ...rest.map(each => cell("td", each)));
      return made;
    }));
  };

  let shown = paths.shown, compared = null;
  const draw = () => {
    const hops = hopsOf(shown), against = compared === null ? null : hopsOf(compared);
    report.plot("path-0", traces(hops, against), layout());
    drawTable(hops);
    by("path-text").textContent = whole(hops);
    by("path-says").textContent = says(shown) + ": " + counts(shown) +
      (against ? ". Compared with " + says(compared) + ": " + counts(compared) : "");
    by("path-0").setAttribute("aria-label", "The path of " + says(shown) + ", hop by hop: " + short(hops) +
      (against ? "; beside it that of " + says(compared) : "") + ". Its hops are in the table below it");
    boxes.value = String(shown);
  };
  report.offer(boxes, paths, says);
  report.offer(other, paths, says, true);
  boxes.addEventListener("change", () => report.select(Number(boxes.value)));
  other.addEventListener("change", () => { compared = other.value === "" ? null : Number(other.value); draw(); });
  document.addEventListener("candidate", event => {
    const id = paths.same[event.detail] ?? event.detail;
    if (id in paths.candidates) {
      shown = id;
      draw();
    } else {
      by("path-says").textContent = "The path of candidate " + event.detail +
        " is not in this file, to keep it small; still shown: " + says(shown) + ".";
    }
  });
  draw();
})();

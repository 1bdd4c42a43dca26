"use strict";
/* Hypervolume and best values against what the reader chooses: evaluations, items or hours. */
(() => {
  const data = report.data.convergence;
  if (!data) return;
  const radios = [...document.querySelectorAll('input[name="convergence-axis"]')];

  const steps = (axis, line, values, texts, style, end) => ({
    type: "scatter", mode: "lines", x: [...line[axis], end], y: [...values, values[values.length - 1]],
    hovertext: [...texts, texts[texts.length - 1]].map(report.plain), hoverinfo: "text",
    line: { shape: "hv", width: 2, ...style },
  });
  const upright = (x, dash, text, place) => ({
    line: { type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { width: 1, dash, color: { css: "muted" } } },
    note: text && { x, y: 1, xref: "x", yref: "paper", text: report.plain(text), showarrow: false, xanchor: "left",
      yanchor: "bottom", font: { size: 10, color: { css: "muted" } }, yshift: 1 + 11 * (place % 2) },
  });

  const draw = () => {
    const axis = (radios.find(each => each.checked) || radios[0]).value;
    /* nobody reads hundredths of an hour */
    const [unit, factor] = axis !== "hours" || data.end.hours >= 2 ? ["hours", 1]
      : data.end.hours >= 1 / 30 ? ["minutes", 60] : ["seconds", 3600];
    const at = value => factor * value;
    const scaled = line => ({ ...line, [axis]: line[axis].map(at) });
    const run = scaled(data.run), end = at(data.end[axis]);
    const marks = [
      ...data.stages.map((each, place) => upright(at(each[axis]), "dot", each.name, place)),
      ...data.restarts.map(each => upright(at(each[axis]), "dash", "")),
    ];
    const layout = title => ({
      xaxis: { title: { text: data.axes[axis].replace("hours", unit) }, rangemode: "tozero" },
      yaxis: { title: { text: title }, rangemode: "tozero" },
      shapes: marks.map(each => each.line), annotations: marks.map(each => each.note).filter(Boolean), margin: { t: 30 },
    });
    const says = (line, place) => "after candidate " + line.id[place] + ": hypervolume " + line.value[place].toFixed(4);
    const volume = [steps(axis, run, run.value, run.id.map((_, place) => says(run, place)), { color: { css: "front" } }, end)];
    if (data.control) {
      const line = scaled(data.control), last = line[axis][line[axis].length - 1];
      const texts = line.id.map((_, place) => "control, " + says(line, place));
      volume.unshift(steps(axis, line, line.value, texts, { color: { css: "muted" }, dash: "dash" }, last));
    }
    if (data.before) {
      const text = "one coefficient per expert had reached " + data.before.value.toFixed(4);
      volume.unshift({
        type: "scatter", mode: "lines", x: [at(data.before[axis]), end], y: [data.before.value, data.before.value],
        hovertext: [text, text], hoverinfo: "text", line: { width: 1, dash: "dot", color: { css: "baseline" } },
      });
    }
    report.plot("convergence-volume", volume, layout("hypervolume"));
    report.plot("convergence-best", data.best.map(each => steps(axis, run, each.value,
      each.says.map((text, place) => "after candidate " + run.id[place] + ": " + each.name + " " + text),
      { dash: each.dash, color: { css: each.colour } }, end)), layout("best so far, within bounds"));
  };
  radios.forEach(each => each.addEventListener("change", draw));
  draw();
})();

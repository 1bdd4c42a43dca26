"use strict";
/* A path through the layers in words, as search/report/hop_texts.py says it. */
(() => {
  const data = report.data.path;
  if (!data) return;
  const STEP = 1000, MOST = 12, MANY = 24;

  /* {model, layer, scale} of every hop; scales are whole thousandths */
  const hopsOf = id => {
    const { h, s = STEP } = data.candidates[id], hops = [];
    for (let at = 0; at < h.length; at += 3)
      for (let layer = h[at + 1]; layer <= h[at + 2]; layer++)
        hops.push({ model: h[at], layer, scale: Array.isArray(s) ? s[hops.length] : s });
    return hops;
  };
  const stretches = (hops, scaled) => {
    const found = [];
    hops.forEach((hop, start) => {
      const before = found[found.length - 1];
      const follows = before && before.model === hop.model && before.last + 1 === hop.layer;
      if (follows && (!scaled || before.scale === hop.scale)) {
        before.last = hop.layer;
        if (before.scale !== hop.scale) before.scale = null;
      } else {
        found.push({ start, model: hop.model, first: hop.layer, last: hop.layer, scale: hop.scale });
      }
    });
    return found;
  };
  const span = (first, last) => (first === last ? String(first) : first + "\u2013" + last);
  const hundredths = steps => {
    const whole = Math.floor((steps + 5) / 10);
    return Math.floor(whole / 100) + "." + String(whole % 100).padStart(2, "0");
  };
  const layersText = each => {
    const alias = data.models[each.model];
    return alias + (/^[A-Za-z]$/.test(alias) ? "" : ".") + span(each.first, each.last);
  };
  const timesText = scale => {
    const text = scale === null ? "" : hundredths(scale);
    return text === "" || text === "1.00" ? "" : "\u00b7" + text;
  };
  const scalesText = hops => {
    const steps = hops.map(hop => hop.scale);
    if (steps.every(each => each === STEP)) return "";
    const [low, high] = [Math.min(...steps), Math.max(...steps)].map(hundredths);
    return low === high ? "scale " + low : "scales " + low + " to " + high;
  };
  const text = (hops, most, cut) => {
    const parts = stretches(hops, true).map(each => layersText(each) + timesText(each.scale));
    if (parts.length <= most) return parts.join(" ");
    let plain = stretches(hops, false).map(layersText);
    const half = Math.floor(most / 2), scales = scalesText(hops);
    if (cut && plain.length > most) plain = [...plain.slice(0, half), "\u2026", ...plain.slice(-half)];
    return plain.join(" ") + (scales ? " (" + scales + ")" : "");
  };
  const count = (number, word) => number + " " + word + (number === 1 ? "" : "s");
  const listed = words =>
    words.length === 1 ? words[0] : words.slice(0, -1).join(", ") + " and " + words[words.length - 1];
  const counts = id => {
    const hops = hopsOf(id), outside = data.candidates[id].o || 0;
    const often = new Map(), models = new Map();
    for (const { model, layer } of hops) {
      const key = model + " " + layer;
      if (!often.has(key)) models.set(model, (models.get(model) || 0) + 1);
      often.set(key, (often.get(key) || 0) + 1);
    }
    const of = [...models].map(([model, number]) => number + " of " + data.models[model]);
    const again = [...often.values()].filter(each => each > 1).length, scales = scalesText(hops);
    return [
      count(hops.length, "hop") + " over " + count(often.size, "different layer") + ", " + listed(of),
      ...(again ? [again + " of them more than once"] : []),
      ...(scales ? [scales] : []),
      ...(outside ? ["outside the layers " + data.models[outside]] : []),
    ].join("; ");
  };
  const rows = hops => stretches(hops, true).map(each => [
    span(each.start, each.start + each.last - each.first), data.models[each.model], span(each.first, each.last),
    hundredths(each.scale ?? STEP),
  ]);

  const short = hops => text(hops, MOST, true), whole = hops => text(hops, MANY, false);

  report.path = { hopsOf, short, whole, counts, rows, hundredths };
  report.recipe = id => {
    const own = data.same[id] ?? id;
    if (!(own in data.candidates)) return [];
    const hops = hopsOf(own);
    return [count(hops.length, "hop") + ": " + short(hops)];
  };
})();

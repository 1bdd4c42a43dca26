"use strict";
/* The rule of `paretomerge choose`, step by step as search/choice.py and search/pareto.py have it, so that both come to
   the same candidate also where two are equal to the last bit. */
(() => {
  const { mix, names } = report.data;
  const by = id => document.getElementById(id);
  const objectives = names.length;

  /* numpy's order of additions: eight running sums from eight numbers on */
  const sum = values => {
    if (values.length < 8) return values.reduce((total, value) => total + value);
    const lanes = values.slice(0, 8), whole = values.length - (values.length % 8);
    for (let place = 8; place < whole; place += 8) for (let lane = 0; lane < 8; lane += 1) lanes[lane] += values[place + lane];
    let total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    for (let place = whole; place < values.length; place += 1) total += values[place];
    return total;
  };
  const keeps = (row, bounds, confidence) => mix.metrics.every(metric => {
    if (!(metric.name in bounds)) return true;
    const found = metric.bounds[confidence][row], limit = bounds[metric.name];
    if (found === null) return false;
    return (metric.side === "at_least" ? limit - found : found - limit) <= 0;
  });
  const dominates = (one, other) =>
    one.every((value, index) => value >= other[index]) && one.some((value, index) => value > other[index]);

  /* weights: one per objective, or null where all count the same; bounds: metric -> value. The candidate's number, or
     null where none keeps the bounds. */
  const choose = (weights, bounds = {}, confidence = "0.9") => {
    const pool = mix.ids.map((_, row) => row).filter(row => keeps(row, bounds, confidence));
    const front = pool.filter(row => !pool.some(other => dominates(mix.utility[other], mix.utility[row])));
    const factor = weights === null ? null : objectives / sum(weights);
    const scale = index => (weights === null ? 1 : weights[index] * factor);
    let best = null;
    for (const row of front) {
      const far = mix.retention[row].map((share, index) => (1 - share) * scale(index));
      const distance = Math.max(...far) + mix.augmentation * sum(far);
      if (best === null || distance < best.distance) best = { id: mix.ids[row], distance };
    }
    return best && best.id;
  };
  report.choose = choose;

  const sliders = names.map((_, index) => by("mix-weight-" + index)).filter(Boolean);
  const fields = mix.metrics.map((_, index) => by("mix-bound-" + index));
  const sure = by("mix-confidence");
  const weightsNow = () => sliders.map(each => Number(each.value));
  const boundsNow = () => Object.fromEntries(mix.metrics
    .map((metric, index) => [metric.name, fields[index].value])
    .filter(([, text]) => text.trim() !== "")
    .map(([name, text]) => [name, Number(text)]));
  const same = weights => weights.every(each => each === weights[0]);
  const quote = text => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\"'\"'") + "'");

  const wish = (weights, bounds, confidence) => {
    const words = [];
    const named = weights.map((weight, index) => [mix.objectives[index], weight]).filter(([, weight]) => weight > 0);
    if (!same(weights)) words.push("--mix " + quote(named.map(([name, weight]) => name + "=" + weight).join(",")));
    for (const metric of mix.metrics)
      if (metric.name in bounds) words.push("--at-least " + quote(metric.word + "=" + bounds[metric.name]));
    if (Object.keys(bounds).length && confidence !== "0.9") words.push("--confidence " + confidence);
    return words;
  };
  const sayable = () => [...mix.objectives, ...mix.metrics.map(each => each.word)].every(each => !/[,=]/.test(each));

  const show = id => {
    const row = mix.ids.indexOf(id);
    const table = document.createElement("table"), line = (tag, texts) => {
      const made = document.createElement("tr");
      texts.forEach((text, place) => {
        const cell = document.createElement(place && tag === "td" ? "td" : "th");
        cell.scope = tag === "td" ? "row" : "col";
        if (cell.tagName === "TD") cell.removeAttribute("scope");
        cell.textContent = text;
        made.append(cell);
      });
      return made;
    };
    table.createCaption().textContent = "Candidate " + id + " on the selection split, with 95 % intervals";
    table.createTHead().append(line("th", ["metric", "score", "kept"]));
    table.createTBody().append(...mix.metrics.map((metric, index) =>
      line("td", [metric.name, metric.says[row], (mix.kept[row] || [])[index] || "\u2013"])));
    const box = document.createElement("div");
    Object.assign(box, { className: "scroll", tabIndex: 0 });
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Scores of the recommended candidate");
    box.append(table);
    const words = document.createElement("p"), button = document.createElement("button");
    words.textContent = report.recipe(id).join("; ");
    Object.assign(button, { type: "button", textContent: "Show candidate " + id + " in every part of this page" });
    button.dataset.candidate = id;
    by("mix-shows").replaceChildren(box, words, button);
  };

  let last = null;
  const update = () => {
    const weights = sliders.length ? weightsNow() : [1], bounds = boundsNow(), confidence = sure.value;
    const total = weights.reduce((one, other) => one + other, 0);
    sliders.forEach((slider, index) => {
      const share = total ? Math.round((100 * weights[index]) / total) + " %" : "0 %";
      by("mix-share-" + index).textContent = share;
      slider.setAttribute("aria-valuetext", share + " of the mix");
    });
    const wrong = mix.metrics.find((metric, index) => fields[index].value.trim() !== "" && !fields[index].checkValidity());
    fields.forEach(field => field.setAttribute("aria-invalid", String(field.value.trim() !== "" && !field.checkValidity())));
    let text = "", id = null;
    if (!total) text = "Nothing counts: give at least one skill some weight.";
    else if (wrong) text = wrong.name + " lies between " + (wrong.low ?? "\u2212\u221e") + " and " + (wrong.high ?? "\u221e") + "; take a value there.";
    else {
      id = choose(same(weights) ? null : weights, bounds, confidence);
      const kept = id === null ? [] : names.map((name, index) => [name, mix.kept[mix.ids.indexOf(id)][index], mix.metrics[index].says[mix.ids.indexOf(id)]]);
      text = id === null
        ? "None of " + mix.ids.length + " finalists is shown to keep these bounds. Ask for less, or for less confidence."
        : "Candidate " + id + (id === mix.chosen ? ", the run\u2019s own choice" : "") + ": " +
          kept.map(([name, share, score]) => name + " " + score + (share ? ", keeps " + share : "")).join("; ") + "." +
          (mix.opened.includes(id) ? "" : " Its holdout has not been opened.");
    }
    if (by("mix-says").textContent !== text) by("mix-says").textContent = text;
    by("mix-commands").hidden = by("mix-to").hidden = id === null;
    if (id === null) by("mix-shows").replaceChildren();
    else {
      if (id !== last || !by("mix-shows").firstChild) show(id);
      const run = quote(mix.run);
      const choice = ["paretomerge choose", run, ...wish(weights, bounds, confidence)].join(" ");
      const out = quote(mix.out + "/" + id);
      by("mix-commands").textContent =
        (sayable() ? choice + "\n" : "") + "paretomerge export " + run + " --candidate " + id + " --out " + out;
    }
    if (id !== last) document.dispatchEvent(new CustomEvent("recommended", { detail: id }));
    last = id;
  };
  by("mix-form").addEventListener("input", update);
  by("mix-form").addEventListener("submit", event => event.preventDefault());
  if (by("mix-equal")) {
    by("mix-equal").addEventListener("click", () => {
      for (const slider of sliders) slider.value = 50;
      update();
    });
  }
  update();
})();

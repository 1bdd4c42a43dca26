"use strict";
/* Items won and lost: another split, candidate, opponent or metric than those that the page was written with. */
(() => {
  const data = report.data.items;
  if (!data) return;
  const by = id => document.getElementById("items-" + id);
  const [AGAINST, MEASURE, WON, LOST, BOTH, NEITHER, SAME, DIFFERENCE, P, BEST, WORST] = Array(11).keys();
  const state = { split: 0, merge: data.shown, against: null, measure: 0 };
  const says = id => "candidate " + id + (data.names[id] ? " \u00b7 " + data.names[id] : "");
  const score = value => String(value).replace("-", "\u2212");

  const cell = (tag, text, scope) => {
    const made = document.createElement(tag);
    if (scope) made.scope = scope;
    made.textContent = text;
    return made;
  };
  const fill = (table, caption, header, rows) => {
    table.caption.textContent = caption;
    table.tHead.rows[0].replaceChildren(...header.map(each => cell("th", each, "col")));
    table.tBodies[0].replaceChildren(...rows.map(row => {
      const line = document.createElement("tr");
      line.append(cell("th", row[0], "row"), ...row.slice(1).map(each => cell("td", each)));
      return line;
    }));
  };
  const tableIn = (box, caption, header, rows) => {
    let table = box.querySelector("table");
    if (!table) {
      const scroll = document.createElement("div");
      scroll.className = "scroll";
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      table = document.createElement("table");
      table.createCaption();
      table.createTHead().insertRow();
      table.createTBody();
      scroll.append(table);
      box.replaceChildren(scroll);
    }
    table.closest(".scroll").setAttribute("aria-label", caption);
    fill(table, caption, header, rows);
  };

  const options = (select, pairs, value) => {
    select.replaceChildren(...pairs.map(([key, text]) => new Option(text, key)));
    select.value = String(value);
  };
  const split = () => data.splits[state.split];
  const duels = () => split().duels[state.merge];

  const bars = (rows, place, sign, colour, word) => ({
    type: "bar", orientation: "h", y: rows.map(row => report.plain(row[AGAINST])), x: rows.map(row => sign * row[place]),
    marker: { color: { css: colour } }, hoverinfo: "text",
    hovertext: rows.map(row => report.plain(row[AGAINST] + ": " + row[place] + " items " + word)),
    text: rows.map(row => String(row[place])), textposition: "outside", cliponaxis: false,
  });

  const draw = () => {
    const rows = duels(), shown = rows.filter(row => row[MEASURE] === state.measure);
    const names = shown.map(row => row[AGAINST]);
    if (!names.includes(state.against)) {
      state.against = names.find(name => name.startsWith("expert ")) ?? names[0] ?? null;
    }
    options(by("split"), data.splits.map((each, index) => [index, each.name]), state.split);
    options(by("merge"), split().merges.map(id => [id, says(id)]), state.merge);
    options(by("measure"), data.measures.map((name, index) => [index, name]), state.measure);
    options(by("against"), names.map(name => [name, name]), state.against);
    by("says").textContent = says(state.merge) + ", items of the " + split().name + " split, " + data.measures[state.measure];

    const most = Math.max(1, ...shown.flatMap(row => [row[WON], row[LOST]]));
    by("0").style.height = 110 + 30 * shown.length + "px";
    by("0").setAttribute("aria-label", "Bars of items won and lost by " + says(state.merge) + ", " +
      data.measures[state.measure] + "; their numbers are in the table below");
    report.plot("items-0", [bars(shown, WON, 1, "front", "won"), bars(shown, LOST, -1, "chosen", "lost")], {
      barmode: "overlay", bargap: 0.35, yaxis: { autorange: "reversed", type: "category", showgrid: false },
      xaxis: { title: { text: "items lost \u2190   \u2192 items won" }, range: report.narrow ? [-1.4 * most, 1.4 * most] : [-1.18 * most, 1.18 * most],
        tickformat: ",d", zeroline: true },
    });

    const table = by("duels").querySelector("table");
    fill(table, "Items won and lost against each parent and baseline: " + says(state.merge) + ", " + split().name,
      data.headers[0], rows.map(row => [row[AGAINST], data.measures[row[MEASURE]],
        ...[WON, LOST, BOTH, NEITHER, SAME].map(place => String(row[place])), row[DIFFERENCE], row[P]]));
    const duel = shown.find(row => row[AGAINST] === state.against);
    list("won", "Won", duel, BEST);
    list("lost", "Lost", duel, WORST);
  };
  const list = (id, word, duel, place) => {
    const box = by(id), items = duel ? duel[place] : [];
    const against = word + " against " + state.against + ", " + data.measures[state.measure];
    box.className = "words";
    if (!items.length) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = against + ": no item.";
      box.replaceChildren(note);
      return;
    }
    const total = duel[place === BEST ? WON : LOST];
    const rest = total > items.length ? "; " + items.length + " of " + total : "";
    tableIn(box, against + rest, data.headers[1], items.map(([item, merge, other]) => {
      const [name, stratum, text] = data.items[item];
      return [name, stratum || "\u2013", text || "\u2013", score(merge), score(other)];
    }));
  };

  const shift = id => {
    const places = [state.split, ...data.splits.keys()];
    const place = places.find(each => id in data.splits[each].duels);
    if (place === undefined) {
      by("says").textContent = "Candidate " + id + " is not compared item by item in this file; still shown: " +
        says(state.merge) + ", items of the " + split().name + " split.";
      return;
    }
    Object.assign(state, { split: place, merge: id });
    draw();
  };
  by("split").addEventListener("change", event => {
    state.split = Number(event.target.value);
    if (!(state.merge in split().duels)) state.merge = split().merges[0];
    draw();
  });
  by("merge").addEventListener("change", event => report.select(Number(event.target.value)));
  by("against").addEventListener("change", event => { state.against = event.target.value; draw(); });
  by("measure").addEventListener("change", event => { state.measure = Number(event.target.value); draw(); });
  document.addEventListener("candidate", event => shift(event.detail));
  draw();
})();

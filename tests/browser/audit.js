/* What is wrong with a page for somebody who cannot see it well, or not at all: an array of sentences, empty for a good
   page. Everything is looked at that is on show now. */
() => {
  const wrong = [];
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const shown = each => each.getClientRects().length > 0 && getComputedStyle(each).visibility !== "hidden";
  const where = each => "<" + each.tagName.toLowerCase() + (each.id ? " #" + each.id : "") +
    (typeof each.className === "string" && each.className ? " ." + each.className : "") + "> \"" +
    (each.textContent || "").trim().slice(0, 40) + "\"";

  /* structure */
  for (const [selector, count] of [["h1", 1], ["main", 1], ["header", 1], ["nav", 1]])
    if (all(selector).length !== count) wrong.push("expected " + count + " " + selector + ", found " + all(selector).length);
  if (!document.documentElement.lang) wrong.push("the page has no language");
  if (!document.title) wrong.push("the page has no title");
  let level = 0;
  for (const each of all("h1, h2, h3, h4, h5, h6")) {
    const own = Number(each.tagName[1]);
    if (own > level + 1) wrong.push("a heading skips a level: " + where(each));
    if (!each.textContent.trim()) wrong.push("an empty heading");
    level = own;
  }
  const ids = all("[id]").map(each => each.id);
  for (const id of new Set(ids)) if (ids.filter(each => each === id).length > 1) wrong.push("twice on the page: #" + id);
  for (const name of ["aria-labelledby", "aria-describedby", "for"])
    for (const each of all("[" + name + "]"))
      for (const id of each.getAttribute(name).split(/\s+/))
        if (!document.getElementById(id)) wrong.push(name + " leads nowhere: " + where(each));
  for (const each of all("a[href^='#']"))
    if (!document.getElementById(each.getAttribute("href").slice(1))) wrong.push("a link leads nowhere: " + where(each));

  /* tables */
  for (const table of all("table").filter(each => each.rows.length)) {
    if (!table.caption || !table.caption.textContent.trim()) wrong.push("a table without caption: " + where(table));
    for (const each of all("th", table))
      if (!["col", "row", "colgroup", "rowgroup"].includes(each.scope)) wrong.push("a heading without scope: " + where(each));
    for (const row of table.tBodies.length ? [...table.tBodies[0].rows] : [])
      if (!row.querySelector("th")) { wrong.push("a row without heading: " + where(row)); break; }
  }

  /* controls */
  const named = each => {
    const given = (each.getAttribute("aria-labelledby") || "").split(/\s+/).filter(Boolean)
      .map(id => document.getElementById(id)?.textContent || "").join(" ");
    const labels = [...(each.labels || [])].map(label => label.textContent).join(" ");
    const own = /^(BUTTON|A|SUMMARY)$/.test(each.tagName) ? each.textContent : "";
    return [each.getAttribute("aria-label"), given, labels, own, each.title].some(text => text && text.trim());
  };
  const controls = all("a[href], button, input, select, textarea, summary, [tabindex='0']")
    .filter(each => !each.closest(".js-plotly-plot"));
  for (const each of controls) if (!named(each)) wrong.push("a control without name: " + where(each));
  for (const each of all("[tabindex]")) if (each.tabIndex > 0) wrong.push("an order of its own: " + where(each));
  for (const each of all(".scroll").filter(shown))
    if (each.scrollWidth > each.clientWidth + 1 && each.tabIndex !== 0) wrong.push("scrolls by mouse only: " + where(each));

  /* figures */
  for (const each of all(".plot").filter(shown)) {
    if (each.getAttribute("role") !== "img" || !(each.getAttribute("aria-label") || "").trim())
      wrong.push("a figure without a text: " + where(each));
    const marks = ".point, .points path, .heatmaplayer image, .barlayer path, .parcoords, .scatterlayer path.js-line, .annotation";
    if (!each.querySelector(".main-svg")) wrong.push("a figure that is not drawn: " + where(each));
    else if (!each.querySelector(marks)) wrong.push("a figure that shows nothing: " + where(each));
    if (!each.closest("figure")?.querySelector("figcaption")) wrong.push("a figure without caption: " + where(each));
  }

  /* contrast: 4.5 : 1 of every text to what lies behind it */
  const parsed = text => {
    const found = text.match(/[\d.]+/g);
    if (!/^rgba?\(/.test(text) || !found) return null;
    const [red, green, blue, alpha = 1] = found.map(Number);
    return [red, green, blue, alpha];
  };
  const over = (top, below) => [0, 1, 2].map(part => top[part] * top[3] + below[part] * (1 - top[3])).concat(1);
  const light = colour => {
    const [red, green, blue] = colour.slice(0, 3).map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = each => {
    const layers = [];
    for (let at = each; at; at = at.parentElement) {
      const colour = parsed(getComputedStyle(at).backgroundColor);
      if (colour && colour[3] > 0) layers.push(colour);
      if (colour && colour[3] === 1) break;
    }
    const white = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
    return layers.reverse().reduce((below, top) => over(top, below), white);
  };
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const each = node.parentElement;
    if (!node.textContent.trim() || !shown(each) || each.closest("script, style, noscript, option, .heatmaplayer, .modebar")) continue;
    const style = getComputedStyle(each), drawn = each instanceof SVGElement;
    if (drawn && (Number(style.opacity) === 0 || style.fill === "none")) continue;
    const colour = parsed(drawn ? style.fill : style.color);
    if (!colour) continue;
    const ground = behind(each), ratio = contrast(over(colour, ground), ground);
    const symbol = each.closest("[aria-hidden=true], .legend span") ? 3 : 4.5; // a mark, no text
    const key = [colour, ground, symbol].join();
    if (ratio < symbol && !seen.has(key)) {
      seen.add(key);
      wrong.push("contrast " + ratio.toFixed(2) + ": " + where(each));
    }
  }
  return wrong;
}

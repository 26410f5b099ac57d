// Search over the samples in the page. Text of samples is only ever set as text, never as markup.
"use strict";
(async () => {
  const form = document.getElementById("search"), list = document.getElementById("found");
  const says = document.getElementById("says"), back = document.getElementById("back"), on = document.getElementById("on");
  const packed = document.getElementById("samples-data");
  if (!form || !packed) return;
  await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));  // the page is painted first
  if (!("DecompressionStream" in window)) {
    says.textContent = "This browser cannot unpack the samples in the page; a current one can.";
    return;
  }
  const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
  packed.textContent = "";
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(unpacked).json();
  const low = data.text.map((text) => text.toLowerCase()), PAGE = 25, n = data.id.length;
  const option = (select, value, label) => select.append(new Option(label, value));
  data.sources.forEach((name, i) => option(form.source, i, name));
  data.selections.forEach((name, i) => option(form.chosen, i, name));
  data.scores.forEach((name, i) => { option(form.order, `-${i}`, `${name}, best first`); option(form.order, `+${i}`, `${name}, worst first`); });
  let rows = [], at = 0;

  const number = (value) => value === null ? "–" : Number(value.toPrecision(4)).toString();
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const marked = (text, words) => {  // the words that were looked for, marked
    const made = document.createDocumentFragment(), lower = text.toLowerCase();
    let from = 0;
    while (from < text.length) {
      const hits = words.map((w) => [lower.indexOf(w, from), w.length]).filter(([i]) => i >= 0);
      if (!hits.length) break;
      const [i, length] = hits.reduce((a, b) => (b[0] < a[0] ? b : a));
      made.append(text.slice(from, i), element("mark", "", text.slice(i, i + length)));
      from = i + length;
    }
    made.append(text.slice(from));
    return made;
  };
  const words = () => form.words.value.toLowerCase().split(/\s+/).filter(Boolean);

  const show = () => {
    const wanted = words();
    list.replaceChildren(...rows.slice(at, at + PAGE).map((i) => {
      const item = element("li"), details = element("details"), summary = element("summary");
      const line = data.text[i].replace(/\s+/g, " ");
      summary.append(element("span", "tag", data.sources[data.source[i]]), " ", marked(line.slice(0, 140), wanted));
      const body = element("div", "said");
      body.append(marked(data.text[i], wanted));
      const told = data.scores.map((name, s) => `${name} ${number(data.values[s][i])}`);
      const inside = data.chosen[i].map((c) => data.selections[c]);
      const numbers = element("div", "numbers", [data.id[i], ...told].join(" · "));
      if (inside.length) numbers.append(` · in ${inside.join(", ")}`);
      details.append(summary, body);
      item.append(details, numbers);
      return item;
    }));
    const until = Math.min(at + PAGE, rows.length);
    says.textContent = rows.length ? `${at + 1} to ${until} of ${rows.length.toLocaleString()}` : "None is like that.";
    back.disabled = at === 0;
    on.disabled = until >= rows.length;
  };
  const search = () => {
    const wanted = words(), source = form.source.value, chosen = form.chosen.value, order = form.order.value;
    rows = [];
    for (let i = 0; i < n; i++) {
      if (source !== "" && data.source[i] !== Number(source)) continue;
      if (chosen !== "" && !data.chosen[i].includes(Number(chosen))) continue;
      if (wanted.every((w) => low[i].includes(w) || data.id[i].startsWith(w))) rows.push(i);
    }
    if (order !== "") {
      const values = data.values[Number(order.slice(1))], sign = order[0] === "-" ? -1 : 1;
      const key = (i) => values[i] === null ? Infinity : sign * values[i];
      rows.sort((a, b) => key(a) - key(b) || a - b);
    }
    at = 0;
    show();
  };
  let waiting;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
  back.addEventListener("click", () => { at -= PAGE; show(); });
  on.addEventListener("click", () => { at += PAGE; show(); });
  form.hidden = false;
  search();
  document.documentElement.dataset.ready = String(n);
})();

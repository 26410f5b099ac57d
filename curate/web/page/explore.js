// The page of `curate explore`: lists of samples, the chosen one, marks, and two selections side by side.
import { beside, button, chat, element, item, number, table, visible } from "./render.js";

const $ = (id) => document.getElementById(id);
const PAGE = 20, FIRST = 6;  // samples of a page; those that the window shows at first, whose texts come first
const token = (() => {  // from the address; kept for this tab, and taken out of what others may see of the address
  const given = decodeURIComponent(location.hash.slice(1));
  if (/^[\w-]{20,}$/.test(given)) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token") ?? "";
})();
let workspace = { manifests: [], columns: [], rows: 0, good: 0, bad: 0 };
let shown = null;  // the list that keys act on
const narrow = matchMedia("(max-width: 56rem)");

// --- asking ---------------------------------------------------------------------------------------------
const ask = async (path, fields, body) => {
  const query = new URLSearchParams(fields ?? {}), init = { headers: { "X-Curate-Token": token } };
  if (body) Object.assign(init, { method: "POST", body: JSON.stringify(body) });
  if (body) init.headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`api/${path}?${query}`, init);
  } catch {
    throw new Error("The server does not answer; is `curate explore` still running?");
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
};
const tell = (text, wrong = false) => {
  $("said").textContent = visible(text);
  $("said").classList.toggle("wrong", wrong);
};
const trying = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    tell(error.message, true);
  }
};

// --- a list, with its pages ------------------------------------------------------------------------------
class List {
  constructor(place, title, open) {
    Object.assign(this, { place, title, open, choice: {}, start: 0, total: 0, samples: [], at: -1, asked: 0 });
  }

  async show(choice, start = 0, at = 0) {
    const asked = ++this.asked, began = performance.now();
    const found = await ask("list", { ...choice, start, count: PAGE });
    if (asked !== this.asked) return;  // something else was asked for meanwhile
    Object.assign(this, { choice, start: found.start, total: found.total, at: -1 });
    this.samples = found.rows.map((row, i) => ({ row, value: found.values[i], waits: true }));
    this.draw();
    this.seconds = (performance.now() - began) / 1000;
    for (const [from, to] of [[0, FIRST], [FIRST, PAGE]]) {
      const part = await ask("samples", { rows: found.rows.slice(from, to).join(",") });
      if (asked !== this.asked) return;
      part.samples.forEach((sample, k) => {
        this.samples[from + k] = { ...sample, value: found.values[from + k] };
        this.redraw(from + k);
      });
      if (from === 0 && this.samples.length && at !== null) this.choose(at < 0 ? this.samples.length + at : Math.min(at, this.samples.length - 1), false);
    }
    this.place.dataset.ready = `${asked}`;
    if (found.start + PAGE < found.total) {  // the next page is asked for ahead, when nothing else is
      await new Promise((go) => setTimeout(go, 500));
      if (asked !== this.asked) return;
      const next = await ask("list", { ...choice, start: found.start + PAGE, count: FIRST });
      if (asked === this.asked && next.rows.length) await ask("samples", { rows: next.rows.join(",") });
    }
  }

  draw() {
    const items = this.samples.map((_, i) => this.item(i)), until = this.start + this.samples.length;
    const list = element("ol", "", ...items);
    const pages = element("div", "pages", button("back", "", trying(() => this.turn(-1)), "previous page (p)"),
      button("on", "", trying(() => this.turn(1)), "next page (n)"), `${number(this.start + 1)} to ${number(until)} of ${number(this.total)}`);
    pages.children[0].disabled = this.start === 0;
    pages.children[1].disabled = until >= this.total;
    this.place.replaceChildren(...[this.title ? element("h2", "", `${this.title} (${number(this.total)})`) : null,
      this.total ? list : element("p", "empty", workspace.rows ? "No sample is like that." : "The pool is empty; add samples with `curate ingest`."),
      this.total ? pages : null].filter(Boolean));
  }

  item(i) {
    const sample = this.samples[i];
    const made = sample.waits ? element("li", "", element("div", "head", "…")) : item(sample, this.choice.by);
    made.addEventListener("click", () => this.choose(i, true));
    if (i === this.at) made.setAttribute("aria-current", "true");
    return made;
  }

  redraw(i) {
    this.place.querySelector("ol")?.children[i]?.replaceWith(this.item(i));
  }

  choose(i, open) {
    const before = this.at;
    this.at = i;
    shown = this;
    for (const place of [before, i]) if (place >= 0) this.redraw(place);
    this.place.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    if (this.samples[i] && !this.samples[i].waits) this.open(this, open);
  }

  async turn(by, at = 0) {
    const start = this.start + by * PAGE;
    if (start < 0 || start >= this.total) return;
    await this.show(this.choice, start, at);
    this.place.scrollTop = 0;
  }

  async step(by) {
    const next = this.at + by;
    if (next >= 0 && next < this.samples.length) this.choose(next, $("sheet").open);
    else await this.turn(by, by > 0 ? 0 : -1);
  }

  async mark(mark, on = false) {
    const at = this.at, sample = this.samples[at];
    if (!sample || sample.waits) return;
    const before = sample.mark, id = sample.id;
    sample.mark = mark ?? "";
    this.redraw(at);
    try {
      Object.assign(workspace, await ask("mark", null, { ids: [id], mark }));
    } catch (error) {
      sample.mark = before;
      this.redraw(at);
      throw error;
    }
    counts();
    if (on && this.at === at) await this.step(1);
    if (this.at === at) this.choose(at, $("sheet").open);
  }
}

// --- one sample ------------------------------------------------------------------------------------------
let opened = 0;
const open = trying(async (list, asked) => {
  const sheet = narrow.matches || list !== samples, number_ = ++opened;
  if (sheet && !asked) return;
  const brief = list.samples[list.at], place = sheet ? $("sheet") : $("detail");
  const whole = await ask("sample", { id: brief.id });
  if (number_ !== opened) return;
  const bar = element("div", "bar");
  for (const [mark, key] of [["good", "g"], ["bad", "b"]]) {
    const made = button(mark, brief.mark === mark ? `set ${mark}` : mark, trying(() => list.mark(brief.mark === mark ? null : mark)), `mark ${mark} (${key})`);
    made.setAttribute("aria-pressed", String(brief.mark === mark));
    bar.append(made);
  }
  if (sheet) bar.append(button("previous", "", trying(() => list.step(-1))), button("next", "", trying(() => list.step(1))), button("close", "", () => $("sheet").close()));
  place.replaceChildren(element("div", `sample ${brief.mark}`, bar, chat(whole), beside(whole)));
  place.scrollTop = 0;
  place.dataset.id = whole.id;
  if (sheet && !$("sheet").open) $("sheet").showModal();
});

// --- samples ---------------------------------------------------------------------------------------------
const samples = new List($("list"), "", open);
const choose = trying(async () => {
  const began = performance.now();
  tell("One moment.");
  await samples.show(Object.fromEntries(new FormData($("choice"))));
  if (!$("said").classList.contains("wrong"))
    tell(`${number(samples.total)} of ${number(workspace.rows)} samples, found in ${samples.seconds.toFixed(2)} s, shown in ${((performance.now() - began) / 1000).toFixed(2)} s.`);
  if (!samples.total) $("detail").replaceChildren();
});
$("choice").addEventListener("submit", (event) => { event.preventDefault(); choose(); });
for (const name of ["by", "descending", "inside", "marked"]) $("choice")[name].addEventListener("change", choose);

const counts = () => {
  $("counts").textContent = `${number(workspace.rows)} samples · ${number(workspace.good)} good · ${number(workspace.bad)} bad`;
  $("open-keep").disabled = !(workspace.good + workspace.bad);
};
const options = (select, names, kept = 0) => {
  const before = select.value;
  select.replaceChildren(...[...select.options].slice(0, kept), ...names.map((name) => new Option(name, name)));
  if ([...select.options].some((option) => option.value === before)) select.value = before;
};
const refresh = async () => {
  workspace = await ask("workspace");
  document.title = `${visible(workspace.name)} · curate explore`;
  $("title").textContent = visible(workspace.name);
  options($("choice").by, workspace.columns, 1);
  options($("choice").inside, workspace.manifests, 1);
  for (const name of ["a", "b"]) options($("pair")[name], workspace.manifests);
  if (workspace.manifests.length > 1 && $("pair").a.value === $("pair").b.value) $("pair").b.selectedIndex = 1;
  counts();
};

// --- two selections --------------------------------------------------------------------------------------
const columns = ["only-a", "both", "only-b"].map((id) => new List($(id), "", open));
const compare = trying(async () => {
  const { a, b } = Object.fromEntries(new FormData($("pair")));
  if (!a || !b) return tell("There are not two selections of samples yet; `curate select` makes some.", true);
  tell("One moment.");
  const its = await ask("diff", { a, b });
  const by = table(["source", a, b, "both"], its.by_source.map((row) => [row.source, row.a, row.b, row.both]));
  const means = its.scores.length ? table(["mean of", a, b, `only ${a}`, `only ${b}`], its.scores.map((row) => [row.score, row.a, row.b, row.only_a, row.only_b])) : "";
  const sizes = table(["selection", "samples", "tokens", "effective"], its.manifests.map((row) => [row.manifest, row.samples, Math.round(row.tokens), Math.round(row.effective)]));
  $("figures").replaceChildren(element("p", "big", `${number(its.both)} samples in both, ${number(its.only_a)} only in ${a}, ${number(its.only_b)} only in ${b}; Jaccard index ${number(its.jaccard)}.`),
    sizes, by, ...[means].filter(Boolean));
  const choices = [{ inside: a, outside: b }, { inside: a, within: b }, { inside: b, outside: a }];
  columns.forEach((list, i) => { list.title = [`only in ${a}`, "in both", `only in ${b}`][i]; });
  for (const [i, list] of columns.entries()) await list.show(choices[i], 0, null);
  tell(`${a} and ${b} side by side.`);
});
$("pair").addEventListener("submit", (event) => { event.preventDefault(); compare(); });

const view = trying(async (name) => {
  const comparing = name === "compare";
  $("to-samples").setAttribute("aria-pressed", String(!comparing));
  $("to-compare").setAttribute("aria-pressed", String(comparing));
  for (const id of ["choice", "samples"]) $(id).hidden = comparing;
  for (const id of ["pair", "compare"]) $(id).hidden = !comparing;
  shown = comparing ? null : samples;
  await refresh();
  await (comparing ? compare() : choose());
});
$("to-samples").addEventListener("click", () => view("samples"));
$("to-compare").addEventListener("click", () => view("compare"));

// --- keeping marks, help ---------------------------------------------------------------------------------
const kept = $("keep-form");
$("open-keep").addEventListener("click", () => { $("keep-said").textContent = ""; $("keep").showModal(); });
$("keep-close").addEventListener("click", () => $("keep").close());
kept.kind.addEventListener("change", () => { $("split-label").hidden = kept.kind.value !== "target"; });
kept.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = Object.fromEntries(new FormData(kept));
  try {
    const its = await ask("keep", null, { ...given, replace: kept.replace.checked });
    $("keep-said").textContent = its.said;
    $("keep-said").classList.remove("wrong");
    await refresh();
  } catch (error) {
    $("keep-said").textContent = visible(error.message);
    $("keep-said").classList.add("wrong");
  }
});
$("open-help").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());

// --- keys ------------------------------------------------------------------------------------------------
const KEYS = {
  j: () => shown?.step(1), ArrowDown: () => shown?.step(1), k: () => shown?.step(-1), ArrowUp: () => shown?.step(-1),
  g: () => shown?.mark("good", true), b: () => shown?.mark("bad", true), u: () => shown?.mark(null),
  n: () => shown?.turn(1), p: () => shown?.turn(-1), Enter: () => shown && shown.at >= 0 && shown.open(shown, true),
  "/": () => { if ($("choice").hidden) return; $("where").focus(); $("where").select(); },
  s: () => view("samples"), c: () => view("compare"), "?": () => $("help").showModal(),
};
addEventListener("keydown", (event) => {
  const field = event.target.closest?.("input, select, textarea");
  const inside = field && !field.closest("dialog:not([open])") ? field : null;  // a closed dialog may keep the focus
  if (event.key === "Escape" && inside && !inside.closest("dialog")) inside.blur();
  const action = KEYS[event.key], busy = $("keep").open || $("help").open;
  if (!action || inside || busy || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.closest?.("button, summary, a")) return;
  event.preventDefault();
  trying(async () => action())();
});

view("samples").then(() => { document.documentElement.dataset.ready = "1"; });

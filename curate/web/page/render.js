// Samples as elements. Whatever comes from a user's data is only ever set as text, never as markup.

export const element = (tag, name, ...inside) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside.filter((one) => one !== null && one !== undefined && one !== ""));
  return made;
};
export const button = (label, name, action, title) => {
  const made = element("button", name, label);
  made.type = "button";
  if (title) made.title = title;
  made.addEventListener("click", action);
  return made;
};
export const number = (value) =>
  typeof value !== "number" ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();

// Control characters, and those that turn the direction of what follows, as a visible sign.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
export const visible = (text) =>
  String(text).replace(/\r\n/g, "\n").replace(HIDDEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const table = (heads, rows) => {
  const made = element("table"), top = element("tr"), body = element("tbody");
  heads.forEach((head) => top.append(element("th", "", visible(head))));
  rows.forEach((row) => {
    const line = element("tr");
    row.forEach((value) => line.append(element("td", "", typeof value === "string" ? visible(value) : number(value))));
    body.append(line);
  });
  made.append(element("thead", "", top), body);
  return element("div", "wide", made);
};

const said = (sample) => {  // the first lines of a sample, for a list
  const turns = sample.turns.length ? sample.turns : [{ role: "", content: sample.text ?? "", calls: [] }];
  const asked = turns.find((turn) => turn.role === "user") ?? turns[0];
  const answer = turns.findLast((turn) => turn.role === "assistant" && turn !== asked);
  return [asked, answer].filter(Boolean).map((turn) => {
    const calls = turn.calls.map((call) => `calls ${call.name}`).join(", ");
    const text = visible([turn.content || turn.reasoning || "", calls].filter(Boolean).join(" · ")).replace(/\s+/g, " ").slice(0, 400);
    return element("div", "line", turn.role ? element("b", "", `${visible(turn.role)} `) : null, text);
  });
};

export const item = (sample, by) => {
  const value = by && sample.value !== null ? element("span", "numbers", `${by} ${number(sample.value)}`) : null;
  const head = element("div", "head", element("span", "tag", visible(sample.source)), value,
    element("span", "", `${number(sample.n_chars)} characters`), element("span", "mark", sample.mark));
  return element("li", sample.mark, head, ...said(sample));
};

const turnOf = (turn, rejected) => {
  const kind = ["user", "assistant"].includes(turn.role) ? turn.role : "other";
  const name = `${rejected ? "rejected " : ""}${turn.role}${turn.weight === null ? "" : ` (weight ${turn.weight})`}`;
  const made = element("article", `turn ${kind}${rejected ? " rejected" : ""}`, element("h3", "", visible(name)));
  if (turn.reasoning) made.append(element("div", "reasoning", visible(turn.reasoning)));
  if (turn.content) made.append(element("div", "content", visible(turn.content)));
  for (const call of turn.calls) made.append(element("div", "calls", `${visible(call.name)}(${visible(call.arguments)})`));
  for (const [key, text] of turn.more) made.append(element("div", "soft", `${visible(key)}: ${visible(text)}`));
  return made;
};
const folded = (title, ...inside) => element("details", "field", element("summary", "", title), ...inside);
const pairs = (fields) => fields.map(([key, text]) => element("div", "numbers", key ? `${visible(key)}: ${visible(text)}` : visible(text)));

export const chat = (sample) => {  // the contents of a whole sample
  const made = document.createDocumentFragment();
  if (sample.tools.length)
    made.append(folded(`${sample.tools.length} tools`, ...sample.tools.flatMap((tool) => [
      element("div", "", element("b", "", visible(tool.name)), ` ${visible(tool.about)}`),
      element("div", "calls", visible(tool.parameters))])));
  if (sample.documents.length)
    made.append(folded(`${sample.documents.length} documents`, ...sample.documents.map((text) => element("div", "calls", visible(text)))));
  if (sample.template.length) made.append(folded("for the chat template", ...pairs(sample.template)));
  for (const turn of sample.turns) made.append(turnOf(turn, false));
  if (sample.text !== null) made.append(element("article", "turn other", element("div", "content", visible(sample.text))));
  for (const turn of sample.rejected) made.append(turnOf(turn, true));
  if (sample.wanted !== null) made.append(element("p", "soft", sample.wanted ? "This answer is wanted." : "This answer is not wanted."));
  return made;
};

export const beside = (sample) => {  // what a whole sample has beside its contents
  const made = document.createDocumentFragment();
  if (sample.scores.length) {
    made.append(element("h2", "", "Scores"), table(["score", "value"], sample.scores.map((one) => [one.score, one.value])));
    for (const one of sample.scores.filter((score) => score.state !== "complete" || score.error))
      made.append(element("p", "soft", visible(`${one.score}: ${one.error ?? one.state}`)));
  }
  if (sample.manifests.length)
    made.append(element("h2", "", "Selections"), table(["selection", "rank", "weight", "repeats"],
      sample.manifests.map((one) => [one.name, one.rank, one.weight, one.repeats])));
  if (sample.meta.length) made.append(element("h2", "", "Other fields"), ...pairs(sample.meta));
  const copies = sample.copies > 1 ? `, ${sample.copies} copies` : "";
  made.append(element("p", "soft", visible(`${sample.id} · ${sample.source} · row ${number(sample.row)} · ${number(sample.n_chars)} characters${copies}`)));
  return made;
};

// What the requests of each key took: a table by day, key and model, with sums.

import { get } from "./api.js";
import { field, fill, format, h, name, plain, select } from "./dom.js";
import { number, row, scrolling, table } from "./table.js";
import { connect as text } from "./texts.js";

const COUNTS = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens"];
const PARTS = ["day", "name", "model"];

/** Return the section; it reads on opening, when the choice of days changes, and when a connection is back or the key another. */
export function usage(page, signal) {
  const days = select(text.lastDays, 7, { onchange: read });
  const by = select(text.parts, "all", { onchange: show });
  const about = h("p", { class: "faint" });
  const place = h("div");
  let rows = [];

  async function read() {
    fill(about, page.admin ? text.usageAll : text.usageOwn);
    try {
      rows = (await get(`/api/v1/usage?days=${days.value}`, { signal })).usage;
      show();
    } catch (error) {
      if (error.name !== "AbortError") fill(place, h("p", { class: "bad", role: "alert" }, plain(error.message)));
    }
  }

  function show() {
    if (!rows.length) return fill(place, h("p", { class: "faint" }, text.noUsage));
    const parts = by.value === "all" ? PARTS : [by.value];
    const counts = (sum) => COUNTS.map((each) => number(format.count(sum[each])));
    const names = (sum) => parts.map((each) => h("td", {}, name(sum[each] ?? text.noKey)));
    const found = summed(rows, parts).map((sum) => h("tr", {}, names(sum), counts(sum)));
    const foot = row(text.sum, parts.slice(1).map(() => h("td")), counts(summed(rows, [])[0]));
    const heads = [...parts, ...COUNTS].map((each) => text.columns[each]);
    fill(place, scrolling(text.usage, "", table(heads, parts.length, found, foot)));
  }

  for (const kind of ["back", "access"]) addEventListener(kind, read, { signal });
  read();
  const choices = h("div", { class: "target" }, field(text.days, days), field(text.by, by));
  return h("section", { class: "usage" }, h("h2", {}, text.usage), about, choices, place);
}

/** Return one row for all that are equal in these parts, with the sums of their counts; days from the last one on. */
export function summed(rows, parts) {
  const found = new Map();
  for (const row of rows) {
    const id = JSON.stringify(parts.map((each) => (each === "name" ? [row.name, row.key] : row[each])));
    const sum = found.get(id) ?? { ...row, ...Object.fromEntries(COUNTS.map((each) => [each, 0])) };
    for (const each of COUNTS) sum[each] += row[each];
    found.set(id, sum);
  }
  const all = [...found.values()];
  return parts[0] === "day" ? all.reverse() : all.sort((one, other) => other.requests - one.requests);
}

// Tables of figures.

import { h } from "./dom.js";

/** Return a table with these heads of columns, the first `texts` of them over texts, the others over numbers. */
export function table(heads, texts, rows, foot) {
  const head = heads.map((each, at) => h("th", { scope: "col", class: at < texts ? "" : "number" }, each));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows), foot && h("tfoot", {}, foot));
}

/** Return a row with a head of its own. */
export const row = (head, ...cells) => h("tr", {}, h("th", { scope: "row" }, head), cells);

export const number = (value, kind = "") => h("td", { class: `number ${kind}` }, value);

/** Return a region that scrolls where its content is too large, with the keyboard too. */
export function scrolling(label, kind, ...content) {
  return h("div", { class: `table ${kind}`, tabindex: 0, role: "region", "aria-label": label }, content);
}

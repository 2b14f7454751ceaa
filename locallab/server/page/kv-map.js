// The map of a KV cache: who holds which of its cells.

import { format, h } from "./dom.js";
import { live as text } from "./texts.js";

const COLUMNS = 32;

/** Return the CSS background of a bucket with so many [live, shared, idle] of `size` cells, "" for an empty one. */
export function background(bucket, size) {
  let from = 0;
  const parts = bucket.map((count, index) => {
    if (!count) return "";
    const start = from;
    from = Math.min(100, start + Math.max(8, (100 * count) / size)); // a single cell is seen too
    return `var(--kv-${["live", "shared", "idle"][index]}) ${start.toFixed(0)}% ${from.toFixed(0)}%, `;
  });
  return from ? `linear-gradient(to top, ${parts.join("")}transparent 0)` : "";
}

/** Return the map of `kv`, a cache in the figures of /api/v1/events, with its legend. */
export function kvMap(kv) {
  const each = kv.buckets.length / kv.streams;
  const cells = kv.buckets.map((bucket) => h("i", { style: { "background-image": background(bucket, kv.bucket_cells) } }));
  const streams = Array.from({ length: kv.streams }, (_, at) => h("div", {}, cells.slice(at * each, (at + 1) * each)));
  const holders = Object.entries(text.holders).map(([held, words]) => [held, format.count(kv[held]), ...words]);
  return h("div", {},
    h("div", {
      class: "kv-map", role: "img", "aria-label": text.kvSummary(...holders.map(([, count]) => count)),
      style: { "--columns": Math.min(each, COLUMNS) },
    }, streams),
    h("ul", { class: "kv-legend" }, holders.map(([held, count, label, about]) => h("li", {},
      h("span", { class: `swatch ${held}`, "aria-hidden": "true" }), h("span", {}, label),
      h("span", { class: "figure" }, count), h("span", { class: "faint" }, about)))),
    h("p", { class: "hint" }, text.kvAbout(kv.layout, format.count(kv.cells), format.count(kv.bucket_cells), kv.streams)));
}

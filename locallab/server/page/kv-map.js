// The map of a KV cache: who holds which of its cells.

import { add, fill, format, h } from "./dom.js";
import { live as text } from "./texts.js";

const COLUMNS = 32;
const HOLDERS = ["live", "shared", "idle"];

/** Return the CSS background of a bucket with so many [live, shared, idle] of `size` cells, "" for an empty one. */
export function background(bucket, size) {
  const parts = [];
  let from = 0;
  HOLDERS.forEach((held, index) => {
    if (!bucket[index]) return;
    const to = Math.min(100, from + Math.max(8, (100 * bucket[index]) / size)); // a single cell is seen too
    parts.push(`var(--kv-${held}) ${from.toFixed(0)}% ${to.toFixed(0)}%`);
    from = to;
  });
  return parts.length ? `linear-gradient(to top, ${parts.join(", ")}, transparent 0)` : "";
}

/** Return the map with its legend: `update(kv)` shows the figures of /api/v1/events. */
export function kvMap() {
  const map = h("div", { class: "kv-map", role: "img" });
  const counts = {};
  const legend = h("ul", { class: "kv-legend" }, [...HOLDERS, "free"].map((held) => {
    counts[held] = h("span", { class: "figure" });
    const swatch = h("span", { class: `swatch ${held}`, "aria-hidden": "true" });
    return h("li", {}, swatch, h("span", {}, text.holders[held][0]), counts[held], h("span", { class: "faint" }, text.holders[held][1]));
  }));
  const about = h("p", { class: "hint" });
  let layout = "";
  let cells = [];
  let shown = [];

  function build(kv) {
    const each = kv.buckets.length / kv.streams;
    cells = kv.buckets.map(() => h("i"));
    shown = kv.buckets.map(() => "");
    map.style.setProperty("--columns", String(Math.min(each, COLUMNS)));
    fill(map);
    for (let stream = 0; stream < kv.streams; stream++) {
      add(map, h("div", {}, cells.slice(stream * each, (stream + 1) * each)));
    }
    about.textContent = text.kvAbout(kv.layout, format.count(kv.cells), format.count(kv.bucket_cells), kv.streams);
  }

  return {
    element: h("div", { class: "kv" }, map, legend, about),
    update(kv) {
      const now = `${kv.layout} ${kv.streams} ${kv.buckets.length} ${kv.cells}`;
      if (now !== layout) build(kv);
      layout = now;
      kv.buckets.forEach((bucket, index) => {
        const wanted = background(bucket, kv.bucket_cells);
        if (wanted !== shown[index]) cells[index].style.setProperty("background-image", wanted || "none");
        shown[index] = wanted;
      });
      for (const held of [...HOLDERS, "free"]) counts[held].textContent = format.count(kv[held]);
      map.setAttribute("aria-label", text.kvSummary(...[...HOLDERS, "free"].map((held) => format.count(kv[held]))));
    },
  };
}

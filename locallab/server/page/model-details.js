// What is known of one model: its entry, its file, and how it fits this machine.

import { get, post } from "./api.js";
import { add, fill, format, h, name, plain } from "./dom.js";
import { models as text } from "./texts.js";

/** Ask for the details of a model and show them in `place`. Raises ApiError. */
export async function showDetails(place, model) {
  const id = encodeURIComponent(model.name);
  const [status, shown, fit] = await Promise.all([
    get(`/models/status/${id}`),
    post("/api/show", { model: model.name }),
    get(`/models/fit/${id}`).catch((error) => error),
  ]);
  fill(place, h("div", { class: "columns" }, entry(model, status, shown), fitting(fit)));
  if (shown.template) add(place, folded(text.template(shown.template.length), h("pre", { tabindex: 0 }, plain(shown.template))));
  const metadata = Object.entries(shown.model_info);
  if (!metadata.length) return;
  add(place, folded(text.metadata(metadata.length), pairs(metadata.map(([key, value]) => [plain(key), cut(value)]))));
}

const folded = (summary, content) => h("details", {}, h("summary", {}, summary), content);

const cut = (value) => plain(typeof value === "string" ? value : JSON.stringify(value)).slice(0, 400);

function pairs(rows) {
  const known = rows.filter(([, value]) => value);
  return h("dl", { class: "facts" }, known.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]));
}

function objects(found) {
  const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
  return Object.entries(found ?? {}).map(([key, value]) => `${key}=${shown(value)}`).join(", ");
}

function entry(model, status, shown) {
  const label = text.facts;
  const tokens = (count) => count && text.tokens(count);
  return h("section", {}, h("h2", {}, text.entry), pairs([
    [label.id, name(model.name)],
    [label.aliases, plain((model.aliases ?? []).join(", "))],
    [label.hub, model.hub && name(model.hub)],
    [label.licence, model.license && name(model.license)],
    [label.takes, (model.modalities ?? []).map((each) => text.modalities[each] ?? each).join(", ")],
    [label.capabilities, model.on_disk && plain(shown.capabilities.join(", "))],
    [label.best, text.classes(model)],
    [label.size, format.bytes(model.size_bytes)],
    [label.active, status.active_bytes && format.bytes(status.active_bytes)],
    [label.memory, model.memory_bytes && format.bytes(model.memory_bytes)],
    [label.context, tokens(model.context)],
    [label.trained, tokens(status.trained_context)],
    [label.architecture, plain(shown.details.family)],
    [label.parameters, shown.details.parameter_size !== "0" && plain(shown.details.parameter_size)],
    [label.quantization, plain(shown.details.quantization_level)],
    [label.adapters, plain(objects(status.adapters))],
    [label.settings, plain(objects(status.settings))],
    [label.system, status.system && name(status.system)],
    [label.device, status.device && name(status.device)],
    [label.usage, status.usage_bytes && text.usage(format.bytes(status.usage_bytes), status.usage_of)],
    [label.loaded, status.load_seconds !== undefined && text.loaded(status.loaded_at, format.seconds(status.load_seconds))],
  ]));
}

function fitting(fit) {
  const title = h("h2", {}, text.here);
  if (fit instanceof Error) return h("section", {}, title, h("p", { class: "warn" }, plain(fit.message)));
  const kinds = [...new Set(fit.table.map((each) => each.kv_type))];
  const contexts = [...new Set(fit.table.map((each) => each.context))];
  const cell = (context, kind) => {
    const found = fit.table.find((each) => each.context === context && each.kv_type === kind);
    return h("td", { class: `number ${found.fits ? "good" : "bad"}` }, text.needs(format.bytes(found.total_bytes), found.fits));
  };
  return h("section", {}, title,
    h("p", { class: fit.chosen.fits ? "" : "bad" }, plain(fit.chosen.reason)),
    fit.approximate && h("p", { class: "hint" }, text.approximate),
    h("div", { class: "table", tabindex: 0, role: "region", "aria-label": text.table }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, text.columns.context),
        kinds.map((kind) => h("th", { scope: "col", class: "number" }, text.kv(kind))))),
      h("tbody", {}, contexts.map((context) => h("tr", {}, h("th", { scope: "row" }, format.count(context)),
        kinds.map((kind) => cell(context, kind))))))));
}

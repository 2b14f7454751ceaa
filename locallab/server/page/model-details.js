// What is known of one model: its entry, its file, and how it fits this machine.

import { get, post } from "./api.js";
import { add, fill, format, h, plain } from "./dom.js";
import { number, row, scrolling, table } from "./table.js";
import { models as text } from "./texts.js";

const LONGEST = 400; // characters of a value

/** Ask for the details of a model and show them in `place`, or why they cannot be shown. */
export async function showDetails(place, model) {
  const id = encodeURIComponent(model.name);
  fill(place, h("p", { class: "faint", role: "status" }, text.reading));
  try {
    const [status, shown, fit] = await Promise.all([
      get(`/models/status/${id}`),
      post("/api/show", { model: model.name }),
      get(`/models/fit/${id}`).catch((error) => error),
    ]);
    fill(place, h("div", { class: "columns" },
      h("section", {}, h("h2", {}, text.entry), pairs(entry(model, status, shown), (each) => text.facts[each])),
      h("section", {}, h("h2", {}, text.here), fitting(fit))));
    const { template } = shown;
    if (template) add(place, folded(text.template(template.length), h("pre", { tabindex: 0 }, plain(template))));
    const count = Object.keys(shown.model_info).length;
    if (count) add(place, folded(text.metadata(count), pairs(shown.model_info, plain)));
  } catch (error) {
    fill(place, h("p", { class: "bad", role: "alert" }, plain(error.message)));
  }
}

const folded = (summary, content) => h("details", {}, h("summary", {}, summary), content);

// The entries of an object that has them, as terms and values.
function pairs(found, label) {
  const known = Object.entries(found).filter(([, value]) => value);
  const shown = (value) => plain(typeof value === "string" ? value : JSON.stringify(value)).slice(0, LONGEST);
  return h("dl", { class: "facts" }, known.map(([key, value]) => [
    h("dt", {}, label(key)), h("dd", { dir: "auto" }, shown(value)),
  ]));
}

const listed = (found) => Object.entries(found ?? {}).map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(", ");

function entry(model, status, shown) {
  const tokens = (count) => count && text.tokens(count);
  return {
    id: model.name,
    aliases: model.aliases?.join(", "),
    hub: model.hub,
    licence: model.license,
    takes: model.modalities?.map((each) => text.modalities[each] ?? each).join(", "),
    capabilities: model.on_disk && shown.capabilities.join(", "),
    best: text.classes(model),
    size: format.bytes(model.size_bytes),
    active: format.bytes(status.active_bytes),
    memory: format.bytes(model.memory_bytes),
    context: tokens(model.context),
    trained: tokens(status.trained_context),
    architecture: shown.details.family,
    parameters: shown.details.parameter_size !== "0" && shown.details.parameter_size,
    quantization: shown.details.quantization_level,
    adapters: listed(status.adapters),
    settings: listed(status.settings),
    system: status.system,
    device: status.device,
    usage: status.usage_bytes && text.usage(format.bytes(status.usage_bytes), status.usage_of),
    loaded: status.load_seconds !== undefined && text.loaded(status.loaded_at, format.seconds(status.load_seconds)),
  };
}

function fitting(fit) {
  if (fit instanceof Error) return h("p", { class: "warn" }, plain(fit.message));
  const kinds = [...new Set(fit.table.map((each) => each.kv_type))];
  const contexts = [...new Set(fit.table.map((each) => each.context))];
  const cell = (context, kind) => {
    const found = fit.table.find((each) => each.context === context && each.kv_type === kind);
    return number(text.needs(format.bytes(found.total_bytes), found.fits), found.fits ? "good" : "bad");
  };
  return [
    h("p", { class: fit.chosen.fits ? "" : "bad" }, plain(fit.chosen.reason)),
    fit.approximate && h("p", { class: "hint" }, text.approximate),
    scrolling(text.table, "", table([text.columns.context, ...kinds.map(text.kv)], 1,
      contexts.map((context) => row(format.count(context), kinds.map((kind) => cell(context, kind)))))),
  ];
}

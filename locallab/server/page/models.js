// The view "models": what is registered, on disk and loaded, what fits here, and what to do with it.

import { get } from "./api.js";
import { announce, button, dialog, field, fill, format, h, name, plain } from "./dom.js";
import { showDetails } from "./model-details.js";
import { dismiss, jobs, load, news, pull, remove, unload } from "./model-jobs.js";
import { morph } from "./morph.js";
import { app, models as text } from "./texts.js";

const GROUPS = {
  loaded: (each) => each.loaded || each.status === "loading",
  disk: (each) => each.on_disk,
  fits: (each) => each.fit.fits !== false,
  large: () => true,
};

export async function open(root, page, argument) {
  let models = [];
  let reads = 0;
  let wanted = argument; // the model whose details the address asks for
  const details = new Map(); // by model, the cells with what is open: kept while the list is only filtered
  const closing = new AbortController();
  const search = h("input", { type: "search", placeholder: text.searchHint, oninput: showList });
  const room = h("p", { class: "faint room" });
  const under = h("section", { class: "jobs", "aria-label": text.jobs });
  const list = h("div", { class: "list" });
  const asked = { class: "code", placeholder: "hf:owner/repo:Q4_K_M", spellcheck: "false", autocomplete: "off", required: true };
  const hub = h("input", asked);
  const pulling = h("form", { class: "pull", onsubmit: (event) => {
    event.preventDefault();
    pull(hub.value.trim());
    hub.value = "";
  } }, field(text.hub, hub, text.hubHint), h("button", {}, text.actions.pull));

  async function read() {
    const mine = ++reads;
    const answer = await get("/models/available?fit=true");
    if (mine !== reads) return; // a later one knows better
    models = answer.models.filter((each) => !each.parent); // those with an adapter are told of in the details
    for (const place of details.values()) fill(place);
    const { ram_bytes, gpus, threads } = answer.machine;
    fill(room, plain(text.room(format.bytes(ram_bytes), gpus.map((gpu) => [gpu.name, format.bytes(gpu.free_bytes)]), threads)));
    pulling.hidden = !page.admin;
    showList();
  }

  const again = () => read().catch((error) => error.status && announce(error.message, { bad: true }));

  function showList() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const left = new Set(models.filter((each) => {
      const said = [each.name, each.description, each.hub, each.aliases, about(each), tags(each)].join(" ").toLowerCase();
      return words.every((word) => said.includes(word));
    }));
    const bodies = Object.entries(GROUPS).map(([group, belongs]) => {
      const members = [...left].filter(belongs);
      members.forEach((each) => left.delete(each));
      const head = [text.groups[group], " ", h("span", { class: "tag" }, members.length)];
      return members.length > 0 && h("tbody", {},
        h("tr", { class: "group" }, h("th", { scope: "rowgroup", colspan: 6 }, head)), members.map(rowsOf));
    });
    const heads = Object.values(text.columns).map((each, at) => h("th", { scope: "col", class: at ? "number" : "" }, each));
    const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), bodies);
    fill(list, table.tBodies.length ? table : h("p", { class: "faint" }, text.none));
    if (!wanted) return;
    const toggle = list.querySelector(`[data-model="${CSS.escape(wanted)}"]`);
    wanted = "";
    toggle?.click();
    toggle?.scrollIntoView({ block: "center" });
  }

  function rowsOf(model) {
    const fit = model.fit;
    const context = model.context ?? fit.context;
    const place = details.get(model.name) ?? h("td", { colspan: 6 });
    const row = h("tr", { class: "details" }, place);
    const toggle = button(text.actions.details, () => show(row.hidden), {
      class: "quiet", "aria-label": text.actionOn(text.actions.details, plain(model.name)), dataset: { model: model.name },
    });
    function show(wide) {
      row.hidden = !wide;
      toggle.setAttribute("aria-expanded", wide);
      if (!wide) {
        details.delete(model.name);
        fill(place);
      } else {
        details.set(model.name, place);
        if (!place.hasChildNodes()) showDetails(place, model);
      }
    }
    show(details.has(model.name));
    const cell = (column, content) =>
      h("td", { class: "number", dataset: { label: text.columns[column] } }, content || text.unknown);
    return [h("tr", { class: "model" },
      h("td", {}, h("div", { class: "name" }, name(model.name), tags(model).map((each) => h("span", { class: "tag" }, each)),
        h("span", { class: "faint" }, plain(about(model)))),
      h("div", { class: "faint", dir: "auto" }, plain(model.description)),
      model.error && h("div", { class: "bad" }, plain(text.failed(model.error))),
      fit.fits !== true && h("div", { class: fit.fits === false ? "bad" : "warn" }, plain(fit.reason))),
      cell("size", format.bytes(model.size_bytes)),
      cell("takes", fit.total_bytes && text.about(format.bytes(fit.total_bytes), fit.approximate)),
      cell("context", context && format.count(context)),
      cell("speed", fit.fits && fit.tokens_per_second && text.rate(fit.tokens_per_second)),
      h("td", { class: "actions" }, h("div", {}, page.admin && actions(model), toggle))), row];
  }

  function actions(model) {
    const job = jobs.get(model.name);
    const act = (action, doing, more) => button(text.actions[action], doing, {
      "aria-label": text.actionOn(text.actions[action], plain(model.name)),
      disabled: (job && !job.error) || (action === "load" && model.status === "loading"), ...more,
    });
    return [
      !model.on_disk && act("pull", () => pull(model.name)),
      model.on_disk && !model.loaded && act("load", () => load(model.name)),
      model.loaded && act("unload", () => unload(model.name)),
      model.on_disk && model.size_bytes && act("remove", () => ask(model), { class: "danger" }),
    ];
  }

  async function ask(model) {
    const content = h("p", {}, text.removeAsked(format.bytes(model.size_bytes), model.loaded));
    const buttons = [["remove", text.actions.remove, { class: "danger" }]];
    if (await dialog(text.remove(plain(model.name)), content, buttons, null, text.keep)) remove(model.name);
  }

  function showJobs() {
    const cards = [...jobs.values()].map((job) => h("div", { class: "card", dataset: { job: [job.kind, job.model, job.error] } },
      h("div", { class: "name" }, h("strong", {}, text.doing[job.kind]), " ", name(job.model)),
      job.error ? h("p", { class: "bad", role: "alert" }, plain(job.error)) : underWay(job),
      h("div", { class: "buttons" },
        job.error ? [button(app.again, job.again), button(text.actions.dismiss, () => dismiss(job.model))]
          : job.kind === "pull" && button(text.actions.cancel, job.stop))));
    morph(under, h("section", { class: "jobs", "aria-label": text.jobs }, cards));
  }

  addEventListener("back", again, { signal: closing.signal });
  addEventListener("access", again, { signal: closing.signal });
  news.addEventListener("progress", showJobs, { signal: closing.signal });
  news.addEventListener("change", ({ detail }) => {
    if (detail.said) announce(detail.said);
    showJobs();
    showList();
    if (detail.ended) again();
  }, { signal: closing.signal });

  fill(root, h("div", { class: "head" }, h("h1", {}, app.views.models), button(text.refresh, again)), room,
    h("div", { class: "tools" }, field(text.search, search), pulling), under, list);
  showJobs();
  await read();
  return { close: () => closing.abort() };
}

function underWay(job) {
  const left = job.total && job.rate > 0 ? (job.total - job.done) / job.rate : null;
  const [done, total, rate] = [job.done, job.total, job.rate].map((count) => count > 0 && format.bytes(count));
  const label = text.actionOn(text.doing[job.kind], plain(job.model));
  return [
    h("progress", { max: job.total, value: job.total && job.done, "aria-label": label }),
    h("p", { class: "faint" }, job.kind === "pull" ? text.progress(done, total, rate, left) : text.waiting[job.kind]),
  ];
}

function tags(model) {
  return [model.current && text.current, text.status[model.status], model.recommended && text.recommended].filter(Boolean);
}

function about(model) {
  const senses = model.modalities.filter((each) => each !== "text").map((each) => text.modalities[each] ?? each);
  const best = text.classes(model);
  return [model.license, senses.length && text.takes(senses.join(", ")), best && text.best(best)].filter(Boolean).join(" · ");
}

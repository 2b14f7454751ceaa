// The view "models": what is registered, on disk and loaded, what fits here, and what to do with it.

import { announce, button, dialog, field, fill, format, h, name, plain, select } from "./dom.js";
import { showDetails } from "./model-details.js";
import { dismiss, jobs, listed, load, news, pull, remove, unload } from "./model-jobs.js";
import { app, models as text } from "./texts.js";

const GROUPS = {
  loaded: (each) => each.loaded || each.status === "loading",
  disk: (each) => each.on_disk,
  fits: (each) => each.fit.fits !== false,
  large: () => true,
};

const FILTERS = {
  all: () => true,
  disk: (each) => each.on_disk,
  fits: (each) => each.fit.fits,
  recommended: (each) => each.recommended,
  senses: (each) => each.modalities.length > 1,
};

export async function open(root, page, argument) {
  let found = { models: [], machine: null };
  let reads = 0;
  let wanted = argument; // the model whose details the address asks for
  const details = new Map(); // by model, the cells with what is open: kept while the list is only filtered
  const closing = new AbortController();
  const search = h("input", { type: "search", placeholder: text.searchHint, oninput: () => showList() });
  const filter = select(Object.entries(text.filters), "all", { onchange: () => showList() });
  const room = h("p", { class: "faint room" });
  const under = h("section", { class: "jobs", "aria-label": text.jobs });
  const list = h("div", { class: "list" });
  const asked = { placeholder: "hf:owner/repo:Q4_K_M", class: "code", spellcheck: "false", autocomplete: "off", required: true };
  const hub = h("input", asked);
  const pulling = h("form", { class: "pull", onsubmit: (event) => {
    event.preventDefault();
    pull(hub.value.trim());
    hub.value = "";
  } }, field(text.hub, hub, text.hubHint), h("button", {}, text.actions.pull));

  async function read() {
    const mine = ++reads;
    const answer = await listed();
    if (mine !== reads) return; // a later one knows better
    found = answer;
    found.models = found.models.filter((each) => !each.parent); // those with an adapter are told of in the details
    for (const place of details.values()) fill(place);
    const { ram_bytes, gpus, threads } = found.machine;
    fill(room, plain(text.room(format.bytes(ram_bytes), gpus.map((gpu) => [gpu.name, format.bytes(gpu.free_bytes)]), threads)));
    showList();
  }

  const again = () => read().catch((error) => error.status && announce(error.message, { bad: true }));

  function showList() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const said = (each) => [each.name, each.description, each.license, each.hub, each.aliases].join(" ").toLowerCase();
    const matches = (each) => words.every((word) => said(each).includes(word));
    const left = new Set(found.models.filter((each) => FILTERS[filter.value](each) && matches(each)));
    const groups = Object.entries(GROUPS).map(([group, belongs]) => {
      const members = [...left].filter(belongs);
      members.forEach((each) => left.delete(each));
      return [group, members];
    });
    const columns = ["model", "size", "takes", "context", "speed"];
    const heads = columns.map((each, at) => h("th", { scope: "col", class: at ? "number" : "" }, text.columns[each]));
    const titled = (group, count) => h("tr", { class: "group" }, h("th", { scope: "rowgroup", colspan: 6 },
      text.groups[group], " ", h("span", { class: "tag" }, count)));
    const table = h("table", {},
      h("thead", {}, h("tr", {}, heads, h("th", { scope: "col" }, h("span", { class: "unseen" }, text.columns.actions)))),
      groups.filter(([, members]) => members.length)
        .map(([group, members]) => h("tbody", {}, titled(group, members.length), members.map(rowsOf))));
    fill(list, table.tBodies.length ? table : h("p", { class: "faint" }, text.none));
    if (wanted) {
      const button = list.querySelector(`[data-model="${CSS.escape(wanted)}"]`);
      wanted = null;
      button?.click();
      button?.scrollIntoView({ block: "center" });
    }
  }

  function rowsOf(model) {
    const fit = model.fit;
    const place = details.get(model.name) ?? h("td", { colspan: 6 });
    const row = h("tr", { class: "details" }, place);
    row.hidden = true;
    const toggle = button(text.actions.details, () => show(row.hidden), {
      class: "quiet", "aria-expanded": "false", "aria-label": text.detailsOf(plain(model.name)), dataset: { model: model.name },
    });
    async function show(wide) {
      row.hidden = !wide;
      toggle.setAttribute("aria-expanded", wide);
      if (!wide) {
        details.delete(model.name);
        return;
      }
      details.set(model.name, place);
      if (place.hasChildNodes()) return;
      fill(place, h("p", { class: "faint", role: "status" }, text.reading));
      await showDetails(place, model).catch((error) => {
        const again = button(app.again, () => { fill(place); show(true); });
        fill(place, h("p", { class: "bad", role: "alert" }, plain(error.message)), again);
      });
    }
    if (details.has(model.name)) show(true);
    const cell = (column, content) => h("td", { class: "number", dataset: { label: text.columns[column] } }, content);
    return [h("tr", { class: "model" },
      h("td", {}, h("div", { class: "name" }, name(model.name), tags(model), about(model)),
        h("div", { class: "faint", dir: "auto" }, plain(model.description)),
        model.error && h("div", { class: "bad" }, plain(text.failed(model.error))),
        fit.fits !== true && h("div", { class: fit.fits === false ? "bad" : "warn" }, plain(fit.reason))),
      cell("size", format.bytes(model.size_bytes ?? NaN) || text.unknown),
      cell("takes", fit.total_bytes ? text.about(format.bytes(fit.total_bytes), fit.approximate) : text.unknown),
      cell("context", model.context || fit.context ? format.count(model.context ?? fit.context) : text.unknown),
      cell("speed", fit.fits && fit.tokens_per_second ? text.rate(fit.tokens_per_second) : text.unknown),
      h("td", { class: "actions" }, h("div", {}, actions(model), toggle))), row];
  }

  function actions(model) {
    if (!page.admin) return null;
    const job = jobs.get(model.name);
    const busy = job && !job.error;
    const act = (action, doing, more) => button(text.actions[action], doing, {
      "aria-label": text.actionOn(text.actions[action], plain(model.name)), disabled: busy, ...more,
    });
    return [
      !model.on_disk && act("pull", () => pull(model.name)),
      model.on_disk && !model.loaded && act("load", () => load(model.name), { disabled: busy || model.status === "loading" }),
      model.loaded && act("unload", () => unload(model.name)),
      model.on_disk && model.size_bytes && act("remove", () => ask(model), { class: "danger" }),
    ];
  }

  async function ask(model) {
    const content = h("p", {}, text.removeAsked(format.bytes(model.size_bytes), model.loaded));
    const buttons = [["remove", text.actions.remove, { class: "danger" }]];
    const chosen = await dialog(text.remove(plain(model.name)), content, buttons, null, text.keep);
    if (chosen) remove(model.name);
  }

  function showJobs() {
    fill(under, [...jobs.values()].map((job) => h("div", { class: "card", dataset: { job: job.model } },
      h("div", { class: "name" }, h("strong", {}, text.doing[job.kind]), " ", name(job.model)),
      job.error ? h("p", { class: "bad", role: "alert" }, plain(job.error))
        : [h("progress", { "aria-label": text.actionOn(text.doing[job.kind], plain(job.model)) }), h("p", { class: "faint" })],
      h("div", { class: "buttons" },
        job.error ? [button(app.again, job.again), button(text.actions.dismiss, () => dismiss(job.model))]
          : job.kind === "pull" && button(text.actions.cancel, job.stop)))));
    for (const job of jobs.values()) showProgress(job);
  }

  function showProgress(job) {
    const card = under.querySelector(`[data-job="${CSS.escape(job.model)}"]`);
    if (!card || job.error) return;
    if (job.total) Object.assign(card.querySelector("progress"), { max: job.total, value: job.done });
    const left = job.total && job.rate > 0 ? (job.total - job.done) / job.rate : null;
    const [done, total, rate] = [job.done, job.total, job.rate].map((count) => count > 0 && format.bytes(count));
    fill(card.querySelector("p"), job.kind === "pull" ? text.progress(done, total, rate, left) : text.waiting[job.kind]);
  }

  const listen = (target, kind, doing) => target.addEventListener(kind, doing, { signal: closing.signal });
  listen(news, "progress", (event) => showProgress(event.detail));
  listen(news, "change", (event) => {
    if (event.detail.said) announce(event.detail.said);
    showJobs();
    showList();
    if (event.detail.ended) again();
  });
  listen(window, "back", again);
  listen(window, "access", () => {
    pulling.hidden = !page.admin;
    again();
  });

  pulling.hidden = !page.admin;
  const find = h("div", { class: "find" }, field(text.search, search), field(text.filter, filter));
  fill(root, h("div", { class: "head" }, h("h1", {}, app.views.models), button(text.refresh, again)), room,
    h("div", { class: "tools" }, find, pulling), under, list);
  showJobs();
  await read();
  return { close: () => closing.abort() };
}

function tags(model) {
  const found = [
    model.current && [text.current, "good"],
    model.status === "ready" && [text.status.ready, "good"],
    model.status === "loading" && [text.status.loading, "warn"],
    model.status === "error" && [text.status.error, "bad"],
    model.recommended && [text.recommended, ""],
  ];
  return found.filter(Boolean).map(([each, kind]) => h("span", { class: `tag ${kind}` }, each));
}

function about(model) {
  const senses = model.modalities.filter((each) => each !== "text").map((each) => text.modalities[each] ?? each);
  const best = text.classes(model);
  const found = [model.license, senses.length && text.takes(senses.join(", ")), best && text.best(best)];
  return h("span", { class: "faint small" }, plain(found.filter(Boolean).join(" · ")));
}

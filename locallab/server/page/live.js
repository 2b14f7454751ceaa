// The view "live": what the server does now, from the stream of /api/v1/events.

import { events, send } from "./api.js";
import { button, fill, format, h, name, plain } from "./dom.js";
import { kvMap } from "./kv-map.js";
import { morph } from "./morph.js";
import { path, sparkline } from "./sparkline.js";
import { number, row, scrolling, table } from "./table.js";
import { app, live as text } from "./texts.js";

const TICK = 1000; // milliseconds between points of the curves, and between streams
const POINTS = 60;

const total = (numbers) => numbers.reduce((sum, each) => sum + each, 0);
const rate = (value) => format.number(value, value < 10 ? 1 : 0);
const seconds = (value) => (value === null ? text.none : format.seconds(value));
const age = (value) => (value < 100 ? `${value.toFixed(1)} s`
  : `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")}`);

// What the server does as a whole: [title, unit, how the value is shown, what it is].
const FIGURES = [
  [text.running, text.requests, format.count, (data) => data.running],
  [text.waiting, text.requests, format.count, (data) => data.waiting + total(data.loading.map((each) => each.waiting))],
  [text.answers, text.tokensPerSecond, rate, (data) => total(data.models.map((each) => each.answer_rate))],
  [text.prompts, text.tokensPerSecond, rate, (data) => total(data.models.map((each) => each.prompt_rate))],
  [text.step, "", (value) => seconds(value || null), (data) => Math.max(0, ...data.models.map((each) => each.step_seconds))],
];

function tiles(data, history) {
  return h("dl", { class: "tiles" }, FIGURES.map(([label, unit, shown, value], at) => {
    const { d, most } = path(history.map(([time, values]) => [time, values[at]]));
    const now = value(data);
    return h("div", { class: "tile" }, h("dt", {}, label), h("dd", {},
      h("span", { class: "figure" }, shown(now)), " ", h("span", { class: "faint" }, unit),
      sparkline(d), h("span", { class: "faint peak" }, text.peak(shown(Math.max(now, most))))));
  }));
}

function stateOf(request) {
  if (request.state !== "prefill") return text.states[request.state];
  const { computed_tokens: computed, prompt_tokens: prompt } = request;
  return text.reading(Math.floor((100 * Math.min(computed, prompt)) / Math.max(1, prompt)));
}

function requests(data, page) {
  const withKeys = page.admin && page.access.key_required;
  const columns = Object.keys(text.columns).filter((each) => withKeys || each !== "key");
  const rows = data.requests.map((each) => h("tr", {},
    h("td", {}, name(each.model), " ", h("span", { class: "faint" }, `#${each.id}`, each.replica && [" ", name(each.replica)])),
    withKeys && h("td", {}, each.key === null ? h("span", { class: "faint" }, text.noKey) : name(each.key)),
    h("td", {}, h("span", { class: `tag ${each.state}` }, stateOf(each))),
    number(format.count(each.prompt_tokens)),
    number(each.state === "waiting" ? text.none : format.count(each.cached_tokens)),
    number(format.count(each.answer_tokens)),
    number(seconds(each.ttft_seconds)),
    number(age(each.age_seconds))));
  const more = data.running + data.waiting - rows.length;
  const rest = more ? (page.admin ? text.more : text.others)(more) : !rows.length && text.noRequests;
  return h("section", {}, h("h2", {}, page.admin ? text.requestsTitle : text.ownRequestsTitle),
    scrolling(text.requestsTitle, "requests",
      table(columns.map((each) => text.columns[each]), columns.length - 5, rows), h("p", { class: "faint" }, rest)));
}

function cached(cache) {
  const [found, missed] = [cache.hit_tokens, cache.missed_tokens].map((each) => total(Object.values(each)));
  const rows = (labels, ...counts) => Object.keys(labels)
    .map((each) => row(labels[each], ...counts.map((count) => number(format.count(count[each])))));
  return h("div", { class: "cache" }, h("h3", {}, text.cacheTitle),
    h("p", {}, found + missed ? text.share(Math.round((100 * found) / (found + missed))) : text.noPrompts),
    table(text.hits, 1, rows(text.tiers, cache.hit_tokens)),
    table(text.misses, 1, rows(text.reasons, cache.requests, cache.missed_tokens)));
}

function modelCard(model) {
  const { ram_bytes: ram, vram_bytes: vram } = model.memory;
  const facts = [
    [text.requestsTitle, text.load(model.running, model.parallel, model.waiting)],
    [text.answers, `${rate(model.answer_rate)} ${text.tokensPerSecond}`],
    [text.prompts, `${rate(model.prompt_rate)} ${text.tokensPerSecond}`],
    [text.step, seconds(model.step_seconds)],
    [text.memoryTitle, text.memoryOf(format.bytes(ram), vram && format.bytes(vram))],
  ];
  const { stored_bytes: stored, stored_limit_bytes: limit } = model;
  return h("section", { class: "card model" },
    h("h2", {}, name(model.name), " ", model.kind !== "text" && h("span", { class: "tag" }, model.kind),
      model.replica && h("span", { class: "faint" }, " ", name(model.replica))),
    h("dl", { class: "facts" }, facts.map(([label, value]) => h("div", {},
      h("dt", {}, label), h("dd", { class: "figure" }, value)))),
    model.kv && h("div", { class: "halves" },
      h("div", {}, h("h3", {}, text.kvTitle), kvMap(model.kv), h("h3", {}, text.storeTitle),
        limit ? h("progress", { max: limit, value: stored, "aria-label": text.storeTitle }) : null,
        h("p", { class: "hint" }, limit ? text.stored(format.bytes(stored), format.bytes(limit)) : text.noStore)),
      cached(model.cache)));
}

function models(data) {
  return h("div", {},
    h("div", { class: "said" },
      data.loading.map((each) => h("p", {},
        text.loading, " ", name(each.name), each.waiting > 0 && `, ${text.waitFor(each.waiting)}`)),
      Object.entries(data.failed).map(([model, reason]) => h("p", { class: "bad" }, name(model), ": ", name(reason))),
      !data.models.length && !data.loading.length && h("p", {}, text.noModel, " ", h("a", { href: "#/models" }, text.toModels))),
    data.models.map(modelCard));
}

function replicas(data) {
  const rows = data.replicas.map((each) => h("tr", {},
    h("td", {}, name(each.id), " ", h("span", { class: "faint" }, name(each.node))),
    h("td", {}, name(each.model)),
    number(format.count(each.running)),
    number(format.count(each.waiting)),
    number(format.count(each.work_tokens)),
    number(format.count(each.prompt_tokens)),
    number(each.prompt_tokens ? text.found(Math.round((100 * each.cached_tokens) / each.prompt_tokens)) : text.none),
    number(format.count(each.prefixes))));
  return h("section", {}, h("h2", {}, text.replicasTitle),
    scrolling(text.replicasTitle, "replicas", table(text.replicaColumns, 2, rows)));
}

function memory({ memory: now }) {
  const bytes = (count) => number(format.bytes(count) || text.none);
  const used = (total, free) => bytes(total === null || free === null ? null : total - free);
  return h("section", {}, h("h2", {}, text.memoryTitle), scrolling(text.memoryTitle, "memory", table(text.memoryColumns, 1, [
    row(text.process, bytes(now.process_bytes), bytes(null)),
    row(text.ram, used(now.total_bytes, now.available_bytes), bytes(now.available_bytes)),
    ...now.gpus.map((gpu) => row([name(gpu.name ?? text.gpu), gpu.load_percent !== null && ` ${text.gpuLoad(gpu.load_percent)}`],
      used(gpu.total_bytes, gpu.free_bytes), bytes(gpu.free_bytes))),
  ])));
}

/** Follow the stream until `signal` is aborted, the connection is lost, or the server refuses: `refused` is told why. */
async function follow(signal, shown, refused) {
  try {
    while (!signal.aborted) {
      const response = await send("GET", "/api/v1/events", undefined, { signal });
      for await (const { data } of events(response)) if (!signal.aborted) shown(JSON.parse(data));
      await new Promise((resolve) => setTimeout(resolve, TICK));
    }
  } catch (error) {
    if (!signal.aborted && error.status !== 0) refused(error.message);
  }
}

export async function open(root, page) {
  let data = null;
  let history = []; // [seconds, values of FIGURES]
  let stream = null;
  const trouble = h("div", { role: "alert" });
  const content = h("div");
  fill(root, h("h1", {}, app.views.live), trouble, content);

  function show() {
    morph(content, h("div", {}, tiles(data, history), requests(data, page),
      data.replicas.length > 0 && replicas(data), models(data), memory(data)));
  }

  function tick() {
    if (!stream || !data) return;
    history = [...history.slice(-POINTS), [performance.now() / 1000, FIGURES.map(([, , , value]) => value(data))]];
    show();
  }

  function shown(message) {
    const draw = data ? show : tick;
    data = message;
    draw();
  }

  const refused = (reason) => fill(trouble, h("p", { class: "bad" }, plain(reason), " ", button(app.again, start)));

  function start() {
    stream?.abort();
    stream = document.hidden ? null : new AbortController();
    fill(trouble);
    if (stream) follow(stream.signal, shown, refused);
  }

  const closing = new AbortController();
  const ticking = setInterval(tick, TICK);
  document.addEventListener("visibilitychange", start, { signal: closing.signal });
  for (const kind of ["access", "back"]) addEventListener(kind, start, { signal: closing.signal });
  start();
  return {
    close() {
      stream?.abort();
      clearInterval(ticking);
      closing.abort();
    },
  };
}

// The view "live": what the server does now, from the stream of /api/v1/events.

import { events, send } from "./api.js";
import { add, button, fill, format, h, name, plain } from "./dom.js";
import { kvMap } from "./kv-map.js";
import { sparkline } from "./sparkline.js";
import { live as text } from "./texts.js";

const TICK = 1000;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;

function set(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

const rate = (value) => format.number(value, value < 10 ? 1 : 0);
const seconds = (value) => (value === null ? text.none : format.seconds(value));
const age = (value) => (value < 100 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)}:${String(Math.floor(value % 60)).padStart(2, "0")}`);

/**
 * Return a function that shows items as children of `parent`, in their order: `make(item)` returns {element, update} for one
 * that is new by its `key(item)`; those that are gone are removed.
 */
function keyed(parent, key, make) {
  const known = new Map();
  return (items) => {
    const wanted = new Set(items.map(key));
    for (const [each, made] of known) {
      if (wanted.has(each)) continue;
      made.element.remove();
      known.delete(each);
    }
    items.forEach((item, index) => {
      const each = key(item);
      if (!known.has(each)) known.set(each, make(item));
      const { element, update } = known.get(each);
      if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
      update(item);
    });
  };
}

function tile(label, unit, hint) {
  const number = h("span", { class: "figure" }, text.none);
  const curve = sparkline();
  const peak = h("span", { class: "faint peak" });
  let most = 0;
  return {
    element: h("div", { class: "tile" }, h("dt", { title: hint }, label), h("dd", {}, number, " ", h("span", { class: "faint" }, unit), curve.element, peak)),
    show(value, shown) {
      set(number, shown(value));
      if (value > most) set(peak, text.peak(shown((most = value))));
    },
    draw(value, shown) {
      most = Math.max(value, curve.add(value));
      set(peak, text.peak(shown(most)));
    },
  };
}

function scrolling(label, table, properties) {
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": label, ...properties }, table);
}

const number = (value) => h("td", { class: "number" }, value);

// What the server does as a whole.
function tiles() {
  const made = {
    running: tile(text.running, text.requests),
    waiting: tile(text.waiting, text.requests),
    answers: tile(text.answers, text.tokensPerSecond),
    prompts: tile(text.prompts, text.tokensPerSecond),
    step: tile(text.step, "", text.stepHint),
  };
  const sum = (data, field) => data.models.reduce((all, model) => all + model[field], 0);
  let now = null;
  const drawn = {
    running: [(data) => data.running, format.count],
    waiting: [(data) => data.waiting + data.loading.reduce((all, each) => all + each.waiting, 0), format.count],
    answers: [(data) => sum(data, "answer_rate"), rate],
    prompts: [(data) => sum(data, "prompt_rate"), rate],
    step: [(data) => Math.max(0, ...data.models.map((model) => model.step_seconds ?? 0)), (value) => (value ? format.seconds(value) : text.none)],
  };
  return {
    element: h("dl", { class: "tiles" }, Object.values(made).map((each) => each.element)),
    update(data) {
      now = data;
      for (const [each, [value, shown]] of Object.entries(drawn)) made[each].show(value(data), shown);
    },
    draw() {
      if (now) for (const [each, [value, shown]] of Object.entries(drawn)) made[each].draw(value(now), shown);
    },
  };
}

function stateOf(request) {
  if (request.state !== "prefill") return text.states[request.state];
  return text.reading(Math.floor((100 * Math.min(request.computed_tokens, request.prompt_tokens)) / Math.max(1, request.prompt_tokens)));
}

function requestRow(withKeys) {
  return (first) => {
    const state = h("span", { class: `tag ${first.state}` });
    const cells = [first.prompt_tokens, "", "", "", ""].map((value) => number(format.count(Number(value))));
    const [, cached, answer, ttft, old] = cells;
    return {
      element: h("tr", {},
        h("td", {}, name(first.model), " ", h("span", { class: "faint" }, `#${first.id}`)),
        withKeys && h("td", {}, first.key === null ? h("span", { class: "faint" }, text.noKey) : name(first.key)),
        h("td", {}, state), cells),
      update(request) {
        set(state, stateOf(request));
        if (state.className !== `tag ${request.state}`) state.className = `tag ${request.state}`;
        set(cached, request.state === "waiting" ? text.none : format.count(request.cached_tokens));
        set(answer, format.count(request.answer_tokens));
        set(ttft, seconds(request.ttft_seconds));
        set(old, age(request.age_seconds));
      },
    };
  };
}

function requests(page) {
  const withKeys = page.admin && page.access.key_required;
  const columns = [["model", ""], withKeys && ["key", ""], ["state", "state"], ["prompt", "number"], ["cached", "number"], ["answer", "number"], ["ttft", "number"], ["age", "number"]];
  const body = h("tbody");
  const empty = h("p", { class: "faint" });
  const rows = keyed(body, (request) => `${request.model} ${request.id}`, requestRow(withKeys));
  const head = columns.filter(Boolean).map(([column, kind]) => h("th", { scope: "col", class: kind }, text.columns[column]));
  return {
    element: h("section", {}, h("h2", {}, page.admin ? text.requestsTitle : text.ownRequestsTitle),
      scrolling(text.requestsTitle, [h("table", {}, h("thead", {}, h("tr", {}, head)), body), empty], { class: "table requests" })),
    update(data) {
      rows(data.requests);
      const more = data.running + data.waiting - data.requests.length;
      set(empty, data.requests.length && !more ? "" : page.admin ? (more ? text.more(more) : text.noRequests) : text.others(more));
    },
  };
}

function cacheTable() {
  const [share, ...rest] = [h("p", { class: "headline" }), h("tbody"), h("tbody")];
  const [reasons, tiers] = rest;
  const line = (label) => {
    const cells = [h("td", { class: "number" }), h("td", { class: "number" })];
    return { cells, element: h("tr", {}, h("th", { scope: "row" }, label), cells) };
  };
  const byReason = Object.fromEntries(Object.keys(text.reasons).map((each) => [each, line(text.reasons[each])]));
  const byTier = Object.fromEntries(Object.keys(text.tiers).map((each) => [each, line(text.tiers[each])]));
  add(reasons, Object.values(byReason).map((each) => each.element));
  add(tiers, Object.values(byTier).map((each) => (each.cells[0].remove(), each.cells[1].setAttribute("colspan", "2"), each.element)));
  const heads = (...titles) => h("tr", {}, titles.map((title, index) => h("th", { scope: "col", class: index ? "number" : "", colspan: index && titles.length < 3 ? 2 : null }, title)));
  return {
    element: h("div", { class: "cache" }, h("h3", {}, text.cacheTitle), share,
      h("table", {}, h("thead", {}, heads(text.foundIn, text.tokens)), tiers),
      h("table", {}, h("thead", {}, heads(text.endedBecause, text.promptsCount, text.tokensMissed)), reasons)),
    update(cache) {
      const found = Object.values(cache.hit_tokens).reduce((all, each) => all + each, 0);
      const missed = Object.values(cache.missed_tokens).reduce((all, each) => all + each, 0);
      set(share, found + missed ? text.share(Math.round((100 * found) / (found + missed))) : text.noPrompts);
      for (const [each, { cells }] of Object.entries(byReason)) {
        set(cells[0], format.count(cache.requests[each]));
        set(cells[1], format.count(cache.missed_tokens[each]));
      }
      for (const [each, { cells }] of Object.entries(byTier)) set(cells[1], format.count(cache.hit_tokens[each]));
    },
  };
}

function modelCard(first) {
  const facts = Object.fromEntries(["load", "answers", "prompts", "step", "memory"].map((each) => [each, h("dd", { class: "figure" })]));
  const store = h("p", { class: "hint" });
  const bar = h("progress", { max: 1, "aria-label": text.storeTitle });
  const map = first.kv && kvMap();
  const cache = first.kv && cacheTable();
  const element = h("section", { class: "card model" },
    h("h2", {}, name(first.name), " ", first.kind === "text" ? null : h("span", { class: "tag" }, text.kinds[first.kind])),
    h("dl", { class: "facts" }, Object.entries(facts).map(([each, place]) => h("div", {}, h("dt", {}, text.facts[each]), place))),
    map && h("div", { class: "halves" },
      h("div", {}, h("h3", {}, text.kvTitle), map.element, h("h3", {}, text.storeTitle), bar, store),
      cache.element));
  return {
    element,
    update(model) {
      set(facts.load, text.load(model.running, model.parallel, model.waiting));
      set(facts.answers, `${rate(model.answer_rate)} ${text.tokensPerSecond}`);
      set(facts.prompts, `${rate(model.prompt_rate)} ${text.tokensPerSecond}`);
      set(facts.step, seconds(model.step_seconds));
      set(facts.memory, text.memoryOf(format.bytes(model.memory.ram_bytes), model.memory.vram_bytes ? format.bytes(model.memory.vram_bytes) : ""));
      if (!map || !model.kv) return;
      map.update(model.kv);
      cache.update(model.cache);
      bar.value = model.stored_limit_bytes ? model.stored_bytes / model.stored_limit_bytes : 0;
      set(store, model.stored_limit_bytes ? text.stored(format.bytes(model.stored_bytes), format.bytes(model.stored_limit_bytes)) : text.noStore);
    },
  };
}

function models(page) {
  const list = h("div", { class: "models" });
  const said = h("div", { class: "said" });
  const cards = keyed(list, (model) => `${model.name} ${model.kind} ${Boolean(model.kv)}`, modelCard);
  let before = "";
  const sayings = (data) => [
    ...data.loading.map((each) => h("p", {}, text.loading, " ", name(each.name), each.waiting ? `, ${text.waitFor(each.waiting)}` : "")),
    ...Object.entries(data.failed).map(([model, reason]) => h("p", { class: "bad" }, name(model), ": ", h("bdi", {}, plain(reason)))),
    !data.models.length && !data.loading.length && h("p", {}, page.admin ? text.noModel : text.noModelForUsers, " ", h("a", { href: "#/models" }, text.toModels)),
  ];
  return {
    element: h("div", {}, said, list),
    update(data) {
      cards(data.models);
      const now = JSON.stringify([data.loading, data.failed, data.models.length > 0]);
      if (now !== before) fill(said, sayings(data));
      before = now;
    },
  };
}

function memory() {
  const body = h("tbody");
  const rows = keyed(body, ([key]) => key, ([, label]) => {
    const cells = [number(""), number("")];
    return {
      element: h("tr", {}, h("th", { scope: "row" }, label), cells),
      update: ([, , ...values]) => values.forEach((value, index) => set(cells[index], value)),
    };
  });
  const bytes = (count) => (count === null ? text.none : format.bytes(count));
  return {
    element: h("section", {}, h("h2", {}, text.memoryTitle),
      scrolling(text.memoryTitle, h("table", { class: "memory" }, h("thead", {}, h("tr", {}, text.memoryColumns.map((each, index) => h("th", { scope: "col", class: index ? "number" : "" }, each)))), body))),
    update({ memory: now }) {
      rows([
        ["process", text.process, bytes(now.process_bytes), text.none],
        ["ram", text.ram, bytes(now.total_bytes - now.available_bytes), bytes(now.available_bytes)],
        ...now.gpus.map((gpu, index) => [`gpu ${index}`, [name(gpu.name ?? text.gpu), gpu.load_percent === null ? "" : ` ${text.gpuLoad(gpu.load_percent)}`],
          gpu.total_bytes === null || gpu.free_bytes === null ? text.none : bytes(gpu.total_bytes - gpu.free_bytes), bytes(gpu.free_bytes)]),
      ]);
    },
  };
}

/** Follow the stream until `signal` is aborted; `problem(message)` is told of what keeps it from going on, "" when it goes on. */
async function follow(signal, shown, problem) {
  for (let pause = FIRST_PAUSE; !signal.aborted; pause = Math.min(LONGEST_PAUSE, pause * 2)) {
    try {
      const response = await send("GET", "/api/v1/events", undefined, { signal });
      for await (const { data } of events(response)) {
        if (signal.aborted) return;
        shown(JSON.parse(data));
        problem("");
        pause = FIRST_PAUSE;
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      if (error.status !== 0) { // a refusal, which does not pass by itself; a lost connection is mended by the page
        problem(error.message);
        return;
      }
      await event("back", signal);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function event(kind, signal) {
  return new Promise((resolve) => {
    addEventListener(kind, resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

export async function open(root, page) {
  let parts = [];
  let stream = null;
  const trouble = h("div", { role: "alert" });
  const content = h("div", { class: "live-content", hidden: true });
  const starting = h("p", { class: "faint" }, text.starting);
  fill(root, h("h1", {}, text.title), trouble, starting, content);

  function build() {
    const [figures, ...others] = [tiles(), requests(page), models(page), memory()];
    parts = [figures, ...others];
    fill(content, parts.map((part) => part.element));
  }

  function shown(data) {
    for (const part of parts) part.update(data);
    if (content.hidden) {
      content.hidden = false;
      starting.remove();
      parts[0].draw();
    }
  }

  function problem(message) {
    if (message || trouble.firstChild) fill(trouble, message ? h("p", { class: "bad" }, plain(message), " ", button(text.again, start)) : null);
  }

  function stop() {
    stream?.abort();
    stream = null;
  }

  function start() {
    stop();
    if (document.hidden) return;
    stream = new AbortController();
    follow(stream.signal, shown, problem);
  }

  function access() {
    build();
    start();
  }

  const listening = new AbortController();
  const ticking = setInterval(() => stream && parts[0].draw(), TICK);
  document.addEventListener("visibilitychange", start, { signal: listening.signal });
  addEventListener("access", access, { signal: listening.signal });
  access();
  return {
    close() {
      stop();
      clearInterval(ticking);
      listening.abort();
    },
  };
}

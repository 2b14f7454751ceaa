// The replay of a client: its requests sent to this server, with what came back and whether the client could live with it.

import { lines, send } from "./api.js";
import { button, fill, h, plain } from "./dom.js";
import { connect as text } from "./texts.js";

/** Return a function that returns the section to replay one of these clients. `signal` ends what runs. */
export function replayer(signal) {
  const replays = new Map(); // by client, {found, said, bad}: they stay while other clients are shown
  const state = h("p", { role: "status" });
  const list = h("ol", { class: "outcomes" });
  const buttons = h("div", { class: "buttons" });
  const about = h("p", { class: "faint" }, text.replayAbout);
  const section = h("section", { class: "replay" }, h("h3", {}, text.replay), about, buttons, state, list);
  let shown = [];
  let running = null;

  function show(clients = shown) {
    shown = clients;
    const last = replays.get(clients.find((each) => replays.has(each)));
    const ways = clients.map((each) => button(text.send(each), () => run(each)));
    fill(buttons, running ? button(text.stop, () => running.abort()) : ways);
    fill(state, last && h("span", { class: last.bad ? "bad" : "" }, plain(last.said)));
    fill(list, last?.found.map(outcome));
    return section;
  }

  async function run(client) {
    const mine = { found: [], said: text.running(client), bad: false };
    shown.forEach((each) => replays.delete(each));
    replays.set(client, mine);
    running = new AbortController();
    show();
    buttons.firstChild.focus();
    try {
      const response = await send("POST", "/api/v1/replay", { client }, { signal: AbortSignal.any([running.signal, signal]) });
      for await (const line of lines(response)) {
        if (line.detail) throw new Error(line.detail);
        mine.found.push(line);
        if (shown.includes(client)) list.append(outcome(line));
      }
      const counts = { ok: 0, fail: 0, skip: 0 };
      for (const each of mine.found) counts[each.status]++;
      Object.assign(mine, { said: text.result(client, counts), bad: counts.fail > 0 });
    } catch (error) {
      Object.assign(mine, error.name === "AbortError" ? { said: text.stopped(client) } : { said: error.message, bad: true });
    }
    const focused = buttons.contains(document.activeElement);
    running = null;
    show();
    if (focused) buttons.firstChild?.focus();
  }

  return show;
}

const KINDS = { ok: "good", fail: "bad", skip: "faint" };

function outcome(each) {
  return h("li", {}, h("details", {},
    h("summary", {}, h("span", { class: `verdict ${KINDS[each.status]}` }, text.verdicts[each.status]), " ", plain(each.doing)),
    h("p", {}, text.sent, " ", h("code", {}, plain(`${each.method} ${each.path}`))),
    each.body !== null && h("pre", { tabindex: 0 }, plain(JSON.stringify(each.body, null, 1))),
    each.answer === null ? h("p", { class: "faint" }, text.nothing)
      : [h("p", {}, text.received(each.http_status)), h("pre", { tabindex: 0, dir: "auto" }, plain(each.answer))]),
  each.reason && h("div", { class: `reason ${KINDS[each.status]}` }, plain(each.reason)));
}

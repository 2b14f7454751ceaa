// The replay of a client: its requests sent to this server, with what came back and whether the client could live with it.

import { lines, send } from "./api.js";
import { button, fill, h, plain } from "./dom.js";
import { connect as text } from "./texts.js";

const KINDS = { ok: "good", fail: "bad", skip: "faint" };

/** Return a section that replays one of these clients with the model of `model()`. `signal` ends what runs. */
export function replay(clients, model, signal) {
  const state = h("p", { role: "status" });
  const list = h("ol", { class: "outcomes" });
  const buttons = h("div", { class: "buttons" });

  const say = (said, bad) => fill(state, h("span", { class: bad ? "bad" : "" }, plain(said)));
  const offer = (...offered) => {
    const focused = buttons.contains(document.activeElement);
    fill(buttons, offered);
    if (focused) buttons.firstChild.focus();
  };
  const ways = clients.map((each) => button(text.send(each), () => run(each)));

  async function run(client) {
    const counts = { ok: 0, fail: 0, skip: 0 };
    const stopping = new AbortController();
    offer(button(text.stop, () => stopping.abort()));
    fill(list);
    say(text.running(client));
    try {
      const body = { client, model: model() };
      const response = await send("POST", "/api/v1/replay", body, { signal: AbortSignal.any([stopping.signal, signal]) });
      for await (const line of lines(response)) {
        if (line.detail) throw new Error(line.detail);
        counts[line.status]++;
        list.append(outcome(line));
      }
      say(text.result(client, counts), counts.fail > 0);
    } catch (error) {
      if (error.name === "AbortError") say(text.stopped(client));
      else say(error.message, true);
    }
    offer(ways);
  }

  offer(ways);
  const about = h("p", { class: "faint" }, text.replayAbout);
  return h("section", { class: "replay" }, h("h3", {}, text.replay), about, buttons, state, list);
}

function outcome(each) {
  return h("li", {}, h("details", {},
    h("summary", {}, h("span", { class: `verdict ${KINDS[each.status]}` }, text.verdicts[each.status]), " ", plain(each.doing)),
    h("p", {}, text.sent, " ", h("code", {}, plain(`${each.method} ${each.path}`))),
    each.body !== null && h("pre", { tabindex: 0 }, plain(JSON.stringify(each.body, null, 1))),
    each.answer === null ? h("p", { class: "faint" }, text.nothing)
      : [h("p", {}, text.received(each.http_status)), h("pre", { tabindex: 0, dir: "auto" }, plain(each.answer))]),
  each.reason && h("div", { class: `reason ${KINDS[each.status]}` }, plain(each.reason)));
}

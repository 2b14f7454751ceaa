// One message of a conversation, and two answers side by side.

import { add, button, copy, fill, format, h, name, plain } from "./dom.js";
import { Rendered } from "./markdown.js";
import { chat as text } from "./texts.js";

/**
 * The element of a message. `actions` are what can be done with it: edit(message, content), again(message), goOn(message),
 * choose(id), results(message, texts), pick(message); `siblings` returns the ids of its branch's siblings.
 */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", { class: "content", dir: "auto" });
    this.rendered = message.role === "assistant" ? new Rendered(this.body) : null;
    this.thoughts = h("div", { class: "thoughts", dir: "auto" });
    this.folded = h("details", { class: "reasoning", hidden: true }, h("summary", {}, text.thinking), this.thoughts);
    this.state = h("p", { class: "state" });
    this.calls = h("div", { class: "calls" });
    this.files = h("div", { class: "files" });
    this.stats = h("p", { class: "stats" });
    this.bar = h("div", { class: "actions" });
    this.tokens = null;
    const heading = h("h2", { id: `heading-${message.id}` }, text.roles[message.role], message.role === "tool" && [": ", name(message.name ?? "")]);
    this.of = h("span", { class: "of" });
    this.element = h("article", { class: `message ${message.role}`, "aria-labelledby": heading.id },
      h("header", {}, heading, this.of), this.files, this.folded, this.body, this.calls, this.state, h("footer", {}, this.bar, this.stats));
    this.drawn = {};
    this.update();
  }

  update() {
    const { message } = this;
    const streams = message.status === "streaming";
    if (this.drawn.content !== message.content || this.drawn.status !== message.status) {
      if (this.rendered) this.rendered.update(message.content, !streams);
      else this.body.textContent = message.content;
    }
    if (this.drawn.reasoning !== message.reasoning) this.thoughts.textContent = message.reasoning ?? "";
    this.folded.hidden = !message.reasoning;
    this.folded.firstChild.textContent = streams && !message.content ? text.thinking : text.thought;
    this.#showState(streams);
    const rest = JSON.stringify([message.status, message.stats, message.calls, message.files?.length, this.actions.siblings(message), message.model]);
    if (this.drawn.rest !== rest) this.#showRest(streams);
    this.drawn = { content: message.content, reasoning: message.reasoning, status: message.status, rest };
    this.element.setAttribute("aria-busy", streams);
  }

  #showState(streams) {
    const { message } = this;
    let said = "";
    if (streams && !message.content && !message.reasoning && !message.calls) {
      const progress = message.progress;
      said = progress?.total ? text.reading(Math.floor((100 * progress.processed) / progress.total)) : text.waiting;
    } else if (message.status === "stopped") said = text.stopped;
    else if (message.status === "interrupted") said = (message.content ? text.interrupted : String)(plain(message.error || text.reloaded));
    else if (message.finish === "length") said = text.cut;
    if (this.state.textContent !== said) this.state.textContent = said;
    this.state.className = message.status === "interrupted" ? "state bad" : "state faint";
  }

  #showRest(streams) {
    const { message, actions } = this;
    fill(this.of, message.role === "assistant" && message.model && name(message.model));
    fill(this.files, (message.files || []).map(fileElement));
    fill(this.calls, (message.calls || []).map(callElement), this.#resultsForm(streams));
    fill(this.stats, statsLine(message));
    fill(this.bar);
    if (streams) return;
    const siblings = actions.siblings(message);
    const at = siblings.indexOf(message.id);
    const step = (by, said, sign) => button(sign, () => actions.choose(siblings[at + by]), { class: "quiet", "aria-label": said, disabled: !(at + by in siblings) });
    add(this.bar, siblings.length > 1 && [step(-1, text.earlier, "‹"), h("span", { class: "branch" }, text.branch(at + 1, siblings.length)), step(1, text.later, "›")]);
    add(this.bar, button(text.copy, () => copy(message.content, text.copied), { class: "quiet" }));
    if (message.role === "user") add(this.bar, button(text.edit, () => this.#edit(), { class: "quiet" }));
    if (message.role !== "assistant") return;
    add(this.bar, button(text.again, () => actions.again(message), { class: "quiet" }));
    const unfinished = message.finish === "length" || (message.status !== "done" && message.content);
    if (unfinished && !message.calls) add(this.bar, button(text.goOn, () => actions.goOn(message), { class: "quiet" }));
    if (message.logprobs?.length) add(this.bar, button(text.tokenView, (event) => this.#showTokens(event.target), { class: "quiet", "aria-pressed": !!this.tokens }));
  }

  #resultsForm(streams) {
    const { message, actions } = this;
    if (streams || !message.calls?.length || !actions.awaits(message)) return null;
    const areas = message.calls.map((call) => h("textarea", { class: "code", rows: 3, "aria-label": text.result(plain(call.name)), placeholder: text.result(plain(call.name)) }));
    const onsubmit = (event) => {
      event.preventDefault();
      actions.results(message, areas.map((area) => area.value));
    };
    return h("form", { class: "results", onsubmit }, areas, h("button", { class: "main" }, text.results));
  }

  #edit() {
    const area = h("textarea", { "aria-label": text.editing, rows: Math.min(20, this.message.content.split("\n").length + 1), value: this.message.content });
    const done = () => {
      form.replaceWith(this.body);
      this.bar.hidden = false;
    };
    const onsubmit = (event) => {
      event.preventDefault();
      done();
      this.actions.edit(this.message, area.value);
    };
    const form = h("form", { class: "editing", onsubmit }, area, h("p", { class: "hint" }, text.editing),
      h("div", { class: "buttons" }, h("button", { class: "main" }, text.send), button(text.cancel, done)));
    area.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      done();
    });
    this.body.replaceWith(form);
    this.bar.hidden = true;
    area.focus();
  }

  #showTokens(pressed) {
    if (this.tokens) {
      this.tokens.remove();
      this.tokens = null;
      this.body.hidden = false;
    } else {
      this.tokens = tokensElement(this.message.logprobs);
      this.body.after(this.tokens);
      this.body.hidden = true;
    }
    pressed.setAttribute("aria-pressed", !!this.tokens);
  }
}

function fileElement(file) {
  if (file.kind === "image") return h("img", { src: file.data, alt: file.name, loading: "lazy" });
  if (file.kind === "audio") return h("audio", { src: file.data, controls: true, "aria-label": file.name });
  return h("details", { class: "file" }, h("summary", {}, name(file.name)), h("pre", {}, file.data));
}

function callElement(call) {
  let shown = call.arguments;
  try {
    shown = JSON.stringify(JSON.parse(call.arguments), null, 2);
  } catch { /* it is still coming, or was cut */ }
  return h("div", { class: "call" }, h("span", { class: "tag" }, text.calls), " ", h("strong", {}, name(call.name)), h("pre", { tabindex: 0 }, shown));
}

function statsLine({ stats, cache }) {
  if (!stats) return "";
  const found = [
    stats.rate && text.rate(format.number(stats.rate)),
    stats.ttft && text.ttft(format.seconds(stats.ttft)),
    stats.prompt && text.cached(stats.cached, stats.prompt, cache),
    stats.completion && text.tokens(stats.completion),
  ];
  return found.filter(Boolean).join(" · ");
}

const MOST_TOKENS = 4000;

// The tokens of an answer, the less likely the more marked. One of them is current: the one under the pointer or the arrow keys.
function tokensElement(logprobs) {
  const about = h("div", { class: "alternatives", role: "status" }, h("p", { class: "hint" }, text.tokenHint));
  const tokens = logprobs.slice(0, MOST_TOKENS).map((each) => h("span", { style: { "--doubt": (1 - Math.exp(each.logprob)).toFixed(2) } }, each.token));
  let current = -1;
  const show = (at) => {
    tokens[current]?.classList.remove("current");
    current = Math.max(0, Math.min(tokens.length - 1, at));
    tokens[current].classList.add("current");
    const { token, logprob, top } = logprobs[current];
    const own = { token, logprob };
    const all = top.some((each) => each.token === token) ? top.map((each) => (each.token === token ? own : each)) : [own, ...top];
    fill(about, h("ol", { "aria-label": text.alternatives }, all.map((each) => {
      const share = (100 * Math.exp(each.logprob)).toFixed(1);
      return h("li", { class: each.token === token ? "chosen" : "" }, h("code", {}, JSON.stringify(plain(each.token))), ` ${share} %`);
    })));
  };
  const onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(current + by);
  };
  const onmouseover = (event) => {
    const at = tokens.indexOf(event.target);
    if (at >= 0) show(at);
  };
  const group = h("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": text.tokenHint, dir: "auto", onkeydown, onmouseover }, tokens);
  return h("div", { class: "token-view" }, group, about);
}

/** The element of two answers to one message. `chosen` is the one that the conversation goes on with. */
export class PairView {
  constructor(messages, actions, chosen) {
    this.views = messages.map((message) => new MessageView(message, { ...actions, siblings: () => [] }));
    this.element = h("article", { class: "pair", "aria-label": text.compare }, this.views.map((view, at) => {
      const picked = messages[at].id === chosen;
      return h("div", { class: picked ? "side picked" : "side" }, view.element,
        button(picked ? text.picked : text.pick, () => actions.pick(messages[at]), { class: picked ? "" : "main", "aria-pressed": picked }));
    }));
  }

  update() {
    for (const view of this.views) view.update();
  }
}

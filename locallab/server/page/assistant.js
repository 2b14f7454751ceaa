// The view "assistant": tasks on code, by the routes of the coding assistant.

import { ApiError, events, get, send } from "./api.js";
import { add, announce, button, copy, field, fill, format, h, name, plain, select } from "./dom.js";
import { lineDiff } from "./diff.js";
import { Editor } from "./editor.js";
import { Rendered, code as codeBlock } from "./markdown.js";
import { partial } from "./partial-json.js";
import { assistant as text, app } from "./texts.js";

const TASKS = ["generate", "refactor", "debug", "audit", "document"];
const JSON_TASKS = ["debug", "audit"];
const DIFF_TASKS = ["refactor", "document", "debug"];
const STORED = "locallab-assistant";
const CONTEXT = 3; // unchanged lines that are shown around a change
const INDENTED = /^( {4}|\t)\s*[^\s\-*+\d]/m;
const FENCED = /(^|\n)(`{3,})[^\n`]*\n[^]*?\n\2[ \t]*(\n|$)/;

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED)) || {};
  } catch {
    return {};
  }
}

let storing = null;

function store() {
  clearTimeout(storing);
  storing = null;
  try {
    sessionStorage.setItem(STORED, JSON.stringify(state));
  } catch { /* too long for the browser: it lasts as long as the page */ }
}

function storeSoon() {
  storing ??= setTimeout(store, 300);
}

addEventListener("pagehide", () => storing && store());

/** What was typed and answered last: of this page, else of the tab. */
let state = null;

export async function open(root, page) {
  state ??= { task: "generate", code: "", prompt: "", language: "", model: "", answer: null, ...stored() };
  const view = new View(root, page);
  view.readModels();
  const again = () => view.readModels();
  addEventListener("access", again);
  addEventListener("back", again);
  return {
    close() {
      removeEventListener("access", again);
      removeEventListener("back", again);
      view.close();
    },
  };
}

class View {
  #running = null;

  constructor(root, page) {
    this.page = page;
    const tasks = TASKS.map((task) => h("label", {},
      h("input", { type: "radio", name: "task", value: task, checked: task === state.task, onchange: () => this.#choose(task) }),
      h("span", {}, text.tasks[task])));
    this.editor = new Editor({ label: text.code, value: state.code, opened: (language) => this.#set("language", language) });
    this.editor.area.addEventListener("input", () => this.#keep("code", this.editor.value));
    this.prompt = h("textarea", { rows: 8, dir: "auto", value: state.prompt, placeholder: text.promptExample,
      oninput: () => this.#keep("prompt", this.prompt.value) });
    const languages = h("datalist", { id: "languages" }, text.languages.map((each) => h("option", { value: each })));
    this.language = h("input", { list: languages.id, value: state.language, maxlength: 64, placeholder: text.languageExample,
      autocomplete: "off", spellcheck: "false", oninput: () => this.#keep("language", this.language.value) });
    this.models = select([["", text.loadedModel]], "", { onchange: () => this.#keep("model", this.models.value) });
    this.about = h("p", { class: "hint" });
    this.promptField = field(text.prompt, this.prompt, text.promptHint);
    this.run = h("button", { class: "main", type: "submit" });
    this.stop = button(text.stop, () => this.#running?.abort(), { hidden: true });
    this.result = h("section", { class: "result", "aria-label": text.result });
    const asking = (event) => {
      event.preventDefault();
      this.#ask();
    };
    const onkeydown = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && asking(event);
    const form = h("form", { class: "ask", onsubmit: asking, onkeydown },
      h("fieldset", { class: "tasks" }, h("legend", {}, text.task), tasks), this.about,
      h("div", { class: "options" }, field(text.language, this.language), field(text.model, this.models)),
      this.promptField, this.editor.element, languages,
      h("div", { class: "buttons" }, this.run, this.stop, h("span", { class: "hint" }, text.keys)));
    fill(root, h("h1", {}, app.views.assistant), h("div", { class: "columns" }, form, this.result));
    this.#showTask();
    this.#showAnswer();
  }

  close() {
    this.#running?.abort();
    this.rendered?.close();
    store();
  }

  async readModels() {
    let models;
    try {
      models = (await get("/v1/models")).data;
    } catch {
      return; // the next task says what is wrong
    }
    const names = models.filter((each) => each.modalities?.includes("text") ?? true).map((each) => each.id);
    if (state.model && !names.includes(state.model)) this.#keep("model", "");
    const options = [["", text.loadedModel], ...names.map((each) => [each, plain(each)])];
    fill(this.models, options.map(([value, shown]) => h("option", { value }, shown)));
    this.models.value = state.model;
  }

  #keep(key, value) {
    state[key] = value;
    storeSoon();
  }

  #set(key, value) {
    this[key].value = value;
    this.#keep(key, value);
  }

  #choose(task) {
    this.#keep("task", task);
    this.#showTask();
  }

  #showTask() {
    const { task } = state;
    fill(this.about, text.about[task]);
    this.promptField.hidden = task !== "generate";
    this.editor.element.hidden = task === "generate";
    this.run.textContent = text.runs[task];
  }

  async #ask() {
    if (this.#running) return;
    const { task, model, language } = state;
    const source = task === "generate" ? state.prompt : state.code;
    if (!source.trim()) {
      announce(task === "generate" ? text.noPrompt : text.noCode, { bad: true });
      (task === "generate" ? this.prompt : this.editor.area).focus();
      return;
    }
    const body = { prompt: source, stream: true, ...(language.trim() && { language: language.trim() }), ...(model && { model }) };
    if (JSON_TASKS.includes(task)) body.format = "json";
    const answer = { task, source, language: language.trim(), text: "", done: null, error: null, stopped: false, seconds: 0 };
    state.answer = answer;
    const running = new AbortController();
    this.#running = running;
    this.run.disabled = true;
    this.stop.hidden = false;
    this.#showAnswer();
    if (this.result.getBoundingClientRect().top > innerHeight - 80) this.result.scrollIntoView();
    const began = performance.now();
    try {
      await this.#read(await send("POST", `/api/v1/assistant/${task}`, body, { signal: running.signal }), answer);
      announce(text.complete);
    } catch (error) {
      if (error.name === "AbortError") answer.stopped = true;
      else answer.error = error.message;
    }
    answer.seconds = (performance.now() - began) / 1000;
    this.#running = null;
    this.run.disabled = false;
    if (document.activeElement === this.stop) this.run.focus();
    this.stop.hidden = true;
    store();
    this.#showAnswer();
  }

  async #read(response, answer) {
    for await (const { data } of events(response)) {
      const event = JSON.parse(data);
      if (event.type === "error") throw new ApiError(500, event.detail);
      if (event.type === "done") answer.done = event;
      else if (event.text) {
        answer.text += event.text;
        this.#grow(answer);
      }
    }
    if (!answer.done) throw new ApiError(0, text.cut);
  }

  // Show what has come meanwhile, once a frame.
  #grow(answer) {
    if (!this.rendered && !this.json) {
      this.#begin(answer);
      fill(this.status, text.working);
    }
    if (this.rendered) this.rendered.update(answer.text);
    else this.due ??= setTimeout(() => {
      this.due = null;
      if (state.answer === answer && this.#running) this.json(answer);
    }, 50);
  }

  #begin(answer) {
    const place = h("div");
    fill(this.result, this.status = h("p", { class: "status" }), place);
    if (JSON_TASKS.includes(answer.task)) this.json = answer.task === "audit" ? this.#findings(place) : this.#diagnosis(place);
    else this.rendered = new Rendered(place, isCode(answer) ? { language: answer.language } : {});
  }

  #showAnswer() {
    const { answer } = state;
    this.rendered?.close();
    this.rendered = this.json = null;
    if (!answer || this.#running) {
      fill(this.result, answer ? h("p", { class: "status" }, text.working) : h("p", { class: "faint empty" }, text.empty));
      return;
    }
    this.#begin(answer);
    this.#showStatus(answer);
    if (this.json) this.json(answer);
    else this.#showText(answer);
    if (answer.task === "debug") this.#showDiff(answer.done?.result?.code, answer);
  }

  #showStatus({ done, seconds, stopped, error, task }) {
    const tokens = done?.tokens_used;
    const figures = done && [done.model, text.tokens(tokens), format.seconds(seconds),
      seconds > 0 && text.rate(format.number(tokens / seconds))].filter(Boolean);
    fill(this.status, h("strong", {}, text.tasks[task]), " ", figures && name(figures.join(" · "), { class: "faint" }));
    const problem = error || (stopped && text.stopped) || done?.detail || (done?.finish_reason === "length" && text.length);
    const look = error ? { class: "bad problem", role: "alert" } : { class: "warn problem" };
    if (problem) add(this.status, h("span", look, plain(problem)));
  }

  // Show an answer in words, and its code beside the old one where there is an old one.
  #showText(answer) {
    const code = answer.done?.code;
    const changed = code && DIFF_TASKS.includes(answer.task);
    this.rendered.update(changed ? answer.text.replace(FENCED, "\n").trim() : answer.text, true);
    if (changed) this.#showDiff(code, answer, this.rendered.element);
    else if (code) add(this.result, h("div", { class: "buttons" }, this.#takeOver(code, text.useAsCode)));
  }

  #takeOver(code, label) {
    return button(label, () => {
      if (state.task === "generate") {
        this.#keep("task", "refactor");
        for (const radio of document.getElementsByName("task")) radio.checked = radio.value === state.task;
        this.#showTask();
      }
      this.editor.replace(code);
      announce(text.taken);
    });
  }

  // Show what is new in code, ahead of `notes` if there are any.
  #showDiff(code, { source, language }, notes) {
    if (!code) return;
    const rows = lineDiff(source.replace(/\n$/, ""), code.replace(/\n$/, ""));
    const [removed, added] = [-1, 1].map((kind) => rows.filter((row) => row.kind === kind).length);
    const counts = [h("span", { class: "good" }, `+${added}`), " ", h("span", { class: "bad" }, `−${removed}`)];
    const title = h("h2", {}, text.changes, " ", counts);
    const buttons = h("div", { class: "buttons" }, this.#takeOver(code, text.takeOver),
      button(text.copyCode, () => copy(code, text.copied)));
    const whole = h("details", {}, h("summary", {}, text.whole), codeBlock(code, language));
    if (notes) notes.remove();
    add(this.result, title, removed + added ? diffTable(rows) : h("p", {}, text.unchanged), buttons, whole);
    if (notes?.textContent) add(this.result, h("h2", {}, text.notes), notes);
  }

  #diagnosis(place) {
    const parts = ["diagnosis", "fix"].map((key) => [key, new Rendered(h("div"))]);
    const code = h("pre", { class: "growing", tabindex: "0", hidden: true });
    for (const [key, { element }] of parts) add(place, h("h2", {}, text[key]), element);
    add(place, code);
    return (answer) => {
      const { value } = partial(answer.text);
      const ended = !this.#running;
      for (const [key, shown] of parts) shown.update(typeof value?.[key] === "string" ? value[key] : "", ended);
      code.hidden = typeof value?.code !== "string" || Boolean(answer.done?.result);
      if (!code.hidden) code.textContent = value.code;
    };
  }

  #findings(place) {
    const list = h("ol", { class: "findings" });
    const summary = h("p", { class: "summary", dir: "auto" });
    add(place, list, summary);
    return (answer) => {
      const { value, open } = partial(answer.text);
      const all = Array.isArray(value?.findings) ? value.findings : [];
      const complete = all.filter((each) => each && typeof each === "object" && !open.has(each));
      for (const found of complete.slice(list.children.length)) add(list, this.#finding(found));
      const none = answer.done?.result && !complete.length;
      fill(summary, none && h("strong", {}, text.noFindings), none && " ", typeof value?.summary === "string" && value.summary);
    };
  }

  #finding({ severity, line, title, detail, fix }) {
    const level = text.severities.includes(severity) ? severity : "info";
    return h("li", { class: "card" },
      h("div", { class: "finding-head" }, h("span", { class: `tag ${level}` }, level), h("strong", { dir: "auto" }, plain(title)),
        Number.isInteger(line) && button(text.line(line), () => this.#goTo(line), { class: "quiet" })),
      h("p", { dir: "auto" }, plain(detail)), fix && h("p", { dir: "auto" }, h("strong", {}, text.repair), " ", plain(fix)));
  }

  #goTo(line) {
    if (state.task === "generate") {
      this.#choose("audit");
      for (const radio of document.getElementsByName("task")) radio.checked = radio.value === state.task;
    }
    this.editor.goTo(line);
  }
}

// A continued program begins with what was asked to be continued. Small models leave out the fences around code too.
const isCode = ({ task, text: answer, source, done }) => (task === "generate" && answer !== "" && answer.startsWith(source))
  || (done !== null && !done.code && !answer.includes("```") && INDENTED.test(answer));

function diffTable(rows) {
  const body = h("tbody");
  for (let at = 0; at < rows.length; ) {
    let end = at;
    while (end < rows.length && rows[end].kind === 0) end++;
    const first = at && at + CONTEXT;
    const last = end === rows.length ? end : end - CONTEXT;
    if (last - first > 1) {
      add(body, rows.slice(at, first).map(diffRow), skipped(rows.slice(first, last)), rows.slice(last, end).map(diffRow));
    } else add(body, rows.slice(at, end).map(diffRow));
    for (at = end; at < rows.length && rows[at].kind !== 0; at++) add(body, diffRow(rows[at]));
  }
  const head = h("thead", {}, h("tr", {}, text.diffHead.map((each) => h("th", { scope: "col" }, each))));
  return h("div", { class: "table diff", tabindex: "0" }, h("table", {}, head, body));
}

function skipped(rows) {
  const row = h("tr", { class: "skipped" }, h("td", { colspan: 4 },
    button(text.skipped(rows.length), () => row.replaceWith(...rows.map(diffRow)), { class: "quiet" })));
  return row;
}

function diffRow({ kind, old, fresh, parts }) {
  const tag = kind < 0 ? "del" : "ins";
  return h("tr", { class: ["removed", null, "added"][kind + 1] },
    h("td", { class: "number" }, old), h("td", { class: "number" }, fresh), h("td", { class: "sign" }, ["−", "", "+"][kind + 1]),
    h("td", { class: "line" }, parts.map(([part, changed]) => (changed ? h(tag, {}, plain(part)) : plain(part)))));
}

// The view "assistant": tasks on code, by the routes of the coding assistant.

import { ApiError, events, get, send } from "./api.js";
import { add, announce, button, field, fill, format, h, name, plain, select } from "./dom.js";
import { lineDiff } from "./diff.js";
import { Editor, LANGUAGES } from "./editor.js";
import { Rendered, code as codeBlock } from "./markdown.js";
import { partial } from "./partial-json.js";
import { assistant as text, app } from "./texts.js";

const STORED = "locallab-assistant";
const FRAME = 50; // ms between two looks at an answer that comes
const CONTEXT = 3; // unchanged lines that are shown around a change
const INDENTED = /^( {4}|\t)\s*[^\s\-*+\d]/m;
const FENCED = /(^|\n)(`{3,})[^\n`]*\n[^]*?\n\2[ \t]*(\n|$)/;

/** What was typed and answered last: of this page, else of the tab. */
const state = {
  task: "generate", code: "", prompt: "", language: "", model: "", answer: null,
  ...JSON.parse(sessionStorage.getItem(STORED)),
};

addEventListener("pagehide", () => sessionStorage.setItem(STORED, JSON.stringify(state)));

export async function open(root) {
  const view = new View(root);
  const { signal } = view.left;
  const readModels = () => view.readModels();
  readModels();
  for (const event of ["access", "back"]) addEventListener(event, readModels, { signal });
  return { close: () => view.left.abort() };
}

class View {
  #running = null;
  left = new AbortController();

  constructor(root) {
    const keep = (key) => ({ value: state[key], oninput: ({ target }) => (state[key] = target.value) });
    const tasks = Object.entries(text.tasks).map(([task, shown]) => h("label", {},
      h("input", { type: "radio", name: "task", value: task, onchange: () => this.#choose(task) }), shown));
    this.editor = new Editor({ label: text.code, value: state.code, opened: (language) => {
      this.language.value = state.language = language;
    } });
    this.editor.area.addEventListener("input", () => (state.code = this.editor.area.value));
    this.prompt = h("textarea", { rows: 8, dir: "auto", placeholder: text.promptExample, ...keep("prompt") });
    const known = [...new Set(Object.values(LANGUAGES))].sort();
    const languages = h("datalist", { id: "languages" }, known.map((value) => h("option", { value })));
    this.language = h("input", { list: languages.id, maxlength: 64, placeholder: text.languageExample, autocomplete: "off",
      spellcheck: "false", ...keep("language") });
    this.models = select([["", text.loadedModel]], "", keep("model"));
    this.about = h("p", { class: "hint" });
    this.promptField = field(text.prompt, this.prompt, text.promptHint);
    this.run = h("button", { class: "main" });
    this.stop = button(text.stop, () => this.#running?.abort(), { hidden: true });
    this.result = h("section", { class: "result", "aria-label": text.result }, h("p", { class: "faint empty" }, text.empty));
    const onsubmit = (event) => {
      event.preventDefault();
      this.#ask();
    };
    const onkeydown = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && onsubmit(event);
    this.form = h("form", { class: "ask", onsubmit, onkeydown },
      h("fieldset", { class: "tasks" }, h("legend", { class: "unseen" }, text.task), tasks), this.about,
      h("div", { class: "options" }, field(text.language, this.language), field(text.model, this.models)),
      this.promptField, this.editor.element, languages,
      h("div", { class: "buttons" }, this.run, this.stop, h("span", { class: "hint" }, text.keys)));
    fill(root, h("h1", {}, app.views.assistant), h("div", { class: "columns" }, this.form, this.result));
    this.#choose(state.task);
    if (state.answer) this.#show(state.answer);
  }

  async readModels() {
    try {
      const models = (await get("/v1/models")).data.filter((each) => each.modalities?.includes("text") ?? true);
      const options = models.map(({ id }) => h("option", { value: id }, plain(id)));
      fill(this.models, h("option", { value: "" }, text.loadedModel), options);
      this.models.value = models.some(({ id }) => id === state.model) ? state.model : "";
      state.model = this.models.value;
    } catch { /* the next task says what is wrong */ }
  }

  #choose(task) {
    state.task = this.form.elements.task.value = task;
    fill(this.about, text.about[task]);
    this.promptField.hidden = task !== "generate";
    this.editor.element.hidden = task === "generate";
    this.run.textContent = text.tasks[task];
  }

  async #ask() {
    if (this.#running) return;
    const { task, model } = state;
    const language = state.language.trim();
    const [source, area, nothing] = task === "generate" ? [state.prompt, this.prompt, text.noPrompt]
      : [state.code, this.editor.area, text.noCode];
    if (!source.trim()) {
      announce(nothing, { bad: true });
      area.focus();
      return;
    }
    const body = { prompt: source, stream: true, language: language || null, model: model || null };
    if (task === "debug" || task === "audit") body.format = "json";
    const answer = { task, source, language, text: "", done: null, error: null, seconds: 0 };
    state.answer = answer;
    this.#running = new AbortController();
    this.#setRunning(true);
    const began = performance.now();
    const grow = this.#begin(answer);
    const frames = setInterval(() => grow(false), FRAME);
    if (this.result.getBoundingClientRect().top > innerHeight - 80) this.result.scrollIntoView();
    try {
      const signal = AbortSignal.any([this.#running.signal, this.left.signal]);
      await this.#read(await send("POST", `/api/v1/assistant/${task}`, body, { signal }), answer);
    } catch (error) {
      if (error.name !== "AbortError") answer.error = error.message;
    }
    answer.seconds = (performance.now() - began) / 1000;
    clearInterval(frames);
    this.#running = null;
    this.#setRunning(false);
    this.#end(answer, grow);
  }

  #setRunning(running) {
    this.run.disabled = running;
    if (document.activeElement === this.stop) this.run.focus();
    this.stop.hidden = !running;
  }

  async #read(response, answer) {
    for await (const { data } of events(response)) {
      const event = JSON.parse(data);
      if (event.type === "error") throw new ApiError(500, event.detail);
      if (event.type === "done") answer.done = event;
      answer.text += event.text ?? "";
    }
    if (!answer.done) throw new ApiError(0, text.cut);
  }

  #show(answer) {
    this.#end(answer, this.#begin(answer));
  }

  // Make room for an answer, and return what shows as much of it as has come.
  #begin(answer) {
    this.status = h("p", { class: "status", role: "status" }, text.working);
    this.words = h("div");
    fill(this.result, this.status, this.words);
    if (answer.task === "audit") return this.#findings(answer);
    return answer.task === "debug" ? this.#diagnosis(answer) : this.#text(answer);
  }

  #end(answer, grow) {
    grow(true);
    const { task, done, seconds, error } = answer;
    const tokens = done?.tokens_used;
    const figures = done && [done.model, text.tokens(tokens), format.seconds(seconds), text.rate(format.number(tokens / seconds))];
    fill(this.status, h("strong", {}, text.tasks[task]), " ", figures && name(figures.join(" · "), { class: "faint" }));
    const problem = error || (!done && text.stopped) || done?.detail || (done?.finish_reason === "length" && text.length);
    const look = error ? { class: "bad problem", role: "alert" } : { class: "warn problem" };
    if (problem) this.status.after(h("p", look, plain(problem)));
    const code = done?.code;
    if (!code) return;
    if (task === "generate") add(this.result, h("div", { class: "buttons" }, this.#takeOver(code, text.useAsCode)));
    else this.#showChanges(code, answer);
  }

  #takeOver(code, label) {
    return button(label, () => {
      if (state.task === "generate") this.#choose("refactor");
      this.editor.replace(code);
      announce(text.taken);
    });
  }

  // Show what is new in code: ahead of the words of an answer that is code in the first place.
  #showChanges(code, { task, source, language }) {
    const rows = lineDiff(source.replace(/\n$/, ""), code.replace(/\n$/, ""));
    const [removed, added] = [-1, 1].map((kind) => rows.filter((row) => row.kind === kind).length);
    const changes = h("div", {},
      h("h2", {}, text.changes, " ", h("span", { class: "good" }, `+${added}`), " ", h("span", { class: "bad" }, `−${removed}`)),
      removed + added ? diffTable(rows) : h("p", {}, text.unchanged),
      h("div", { class: "buttons" }, this.#takeOver(code, text.takeOver)),
      h("details", {}, h("summary", {}, text.whole), codeBlock(code, language)));
    if (task === "debug") this.words.after(changes);
    else this.words.before(changes, this.words.textContent && h("h2", {}, text.notes));
  }

  #text(answer) {
    let shown = null;
    let asCode = null;
    return (ended) => {
      if (asCode !== isCode(answer)) {
        asCode = isCode(answer);
        shown = new Rendered(this.words, asCode ? { language: answer.language } : {});
      }
      const apart = answer.task !== "generate" && answer.done?.code; // its code is shown by itself
      shown.update(apart ? answer.text.replace(FENCED, "\n").trim() : answer.text, ended);
    };
  }

  #diagnosis(answer) {
    const parts = ["diagnosis", "fix", "code"].map((key) => {
      const shown = new Rendered(h("div"), key === "code" ? { language: answer.language } : {});
      const part = h("div", {}, h("h2", {}, text[key]), shown.element);
      add(this.words, part);
      return [key, shown, part];
    });
    return (ended) => {
      const { value } = partial(answer.text);
      for (const [key, shown, part] of parts) {
        shown.update(value?.[key] ?? "", ended);
        part.hidden = !shown.text || (key === "code" && answer.done?.result);
      }
    };
  }

  #findings(answer) {
    const list = h("ol", { class: "findings" });
    const summary = h("p", { class: "summary", dir: "auto" });
    add(this.words, list, summary);
    return () => {
      const { value, depth } = partial(answer.text);
      const found = value?.findings ?? [];
      const complete = depth > 2 ? found.slice(0, -1) : found;
      add(list, complete.slice(list.children.length).map((each) => this.#finding(each)));
      fill(summary, answer.done?.result && !found.length && h("strong", {}, text.noFindings, " "), value?.summary);
    };
  }

  #finding({ severity, line, title, detail, fix }) {
    return h("li", { class: "card" },
      h("div", { class: "finding-head" }, h("span", { class: `tag ${severity}` }, plain(severity)),
        h("strong", { dir: "auto" }, plain(title)),
        line > 0 && button(text.line(line), () => this.#goTo(line), { class: "quiet" })),
      h("p", { dir: "auto" }, plain(detail)), fix && h("p", { dir: "auto" }, h("strong", {}, text.repair), " ", plain(fix)));
  }

  #goTo(line) {
    if (state.task === "generate") this.#choose("audit");
    this.editor.goTo(line);
  }
}

// A continued program begins with what was asked to be continued. Small models leave out the fences around code too.
const isCode = ({ task, text: answer, source, done }) => (task === "generate" && answer !== "" && answer.startsWith(source))
  || (done !== null && !done.code && !answer.includes("```") && INDENTED.test(answer));

function diffTable(rows) {
  const near = rows.map((_, at) => rows.slice(Math.max(0, at - CONTEXT), at + CONTEXT + 1).some(({ kind }) => kind));
  const body = h("tbody");
  for (let at = 0, end; at < rows.length; at = end) {
    end = near.indexOf(!near[at], at);
    if (end < 0) end = rows.length;
    const part = rows.slice(at, end);
    add(body, near[at] || part.length < 2 ? part.map(diffRow) : skipped(part));
  }
  const head = h("thead", { class: "unseen" }, h("tr", {}, text.diffHead.map((each) => h("th", { scope: "col" }, each))));
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

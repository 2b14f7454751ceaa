// The settings of a conversation: model, system text, sampling, tools, schema, and a second set for answers side by side.

import { button, field, fill, h, select } from "./dom.js";
import { chat as text } from "./texts.js";

const WHOLE = ["top_k", "max_tokens", "seed"];
const EFFORTS = ["", "none", "minimal", "low", "medium", "high"];
const SCHEMA = '{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}';

/** Read an object from a text of JSON. Raises Error. */
function object(source) {
  let found;
  try {
    found = JSON.parse(source);
  } catch (error) {
    throw new Error(text.noJson(error.message));
  }
  if (!found || typeof found !== "object" || Array.isArray(found)) throw new Error(text.noObject);
  return found;
}

/**
 * The form of a conversation's settings. `settings` is what is edited, and `changed` is called after each change. What is not
 * right yet is marked, and named in `problem`; `settings` keeps its last right value.
 */
export class SettingsForm {
  constructor(element, models, changed) {
    this.element = element;
    this.models = models;
    this.changed = changed;
    this.settings = {};
    this.wrong = new Set();
  }

  get problem() {
    const [first] = this.wrong;
    return first ? text.wrong(first) : "";
  }

  show(settings) {
    this.settings = settings;
    this.wrong.clear();
    const other = (settings.other ??= {});
    const compared = h("div", { hidden: !settings.compare }, h("p", { class: "hint" }, text.compareHint),
      this.#model(other), this.#area(other, "system", text.system, 2), this.#numbers(other, ["temperature", "seed"]));
    fill(this.element, h("h2", {}, text.settings), this.#model(settings), this.#area(settings, "system", text.system, 4),
      h("details", { open: true }, h("summary", {}, text.sampling), this.#numbers(settings, Object.keys(text.fields)), this.#stops(), this.#effort()),
      this.#check("logprobs", text.logprobs),
      h("details", { open: !!settings.tools?.length }, h("summary", {}, text.tools), this.#tools()),
      h("details", { open: !!settings.schema }, h("summary", {}, text.schema),
        this.#json(settings, "schema", text.schema, text.schema, { placeholder: SCHEMA }), h("p", { class: "hint" }, text.schemaHint)),
      this.#check("compare", text.compare, (on) => (compared.hidden = !on)), compared);
  }

  #set(settings, key, value) {
    if (value === "" || value === undefined) delete settings[key];
    else settings[key] = value;
    this.changed();
  }

  #model(settings) {
    const known = this.models.map((each) => each.id);
    const extra = settings.model && !known.includes(settings.model) ? [settings.model] : [];
    const control = select([["", text.serversModel], ...known, ...extra], settings.model ?? "");
    control.addEventListener("change", () => this.#set(settings, "model", control.value));
    return field(text.model, control);
  }

  #area(settings, key, label, rows) {
    const control = h("textarea", { rows, value: settings[key] ?? "", oninput: () => this.#set(settings, key, control.value) });
    return field(label, control);
  }

  #numbers(settings, names) {
    return h("div", { class: "numbers" }, names.map((key) => {
      const step = WHOLE.includes(key) ? "1" : "any";
      const control = h("input", { type: "number", step, value: settings[key] ?? "", placeholder: text.own });
      control.addEventListener("input", () => {
        const right = control.validity.valid;
        this.#mark(control, text.fields[key], right);
        if (right) this.#set(settings, key, control.value);
      });
      return field(text.fields[key], control);
    }));
  }

  #stops() {
    const control = h("textarea", { rows: 2, value: (this.settings.stop ?? []).join("\n") });
    control.addEventListener("input", () => {
      const stops = control.value.split("\n").filter(Boolean);
      this.#set(this.settings, "stop", stops.length ? stops : "");
    });
    return field(text.stops, control);
  }

  #effort() {
    const control = select(EFFORTS.map((each) => [each, each || text.own]), this.settings.reasoning_effort ?? "");
    control.addEventListener("change", () => this.#set(this.settings, "reasoning_effort", control.value));
    return field(text.reasoning, control);
  }

  #check(key, label, shown = () => {}) {
    const control = h("input", { type: "checkbox", checked: !!this.settings[key] });
    control.addEventListener("change", () => {
      this.#set(this.settings, key, control.checked || "");
      shown(control.checked);
    });
    return h("label", { class: "check" }, control, " ", label);
  }

  #mark(control, label, right) {
    if (right) this.wrong.delete(label);
    else this.wrong.add(label);
    control.setAttribute("aria-invalid", !right);
  }

  #tools() {
    const { settings } = this;
    const list = h("div", {});
    const draw = () => fill(list, (settings.tools ?? []).map((tool, at) => this.#tool(tool, at, () => {
      settings.tools.splice(at, 1);
      if (!settings.tools.length) delete settings.tools;
      this.wrong.clear();
      this.changed();
      draw();
    })));
    draw();
    const choice = select(Object.entries(text.toolChoices), settings.tool_choice ?? "");
    choice.addEventListener("change", () => this.#set(settings, "tool_choice", choice.value));
    const more = button(text.toolAdd, () => {
      (settings.tools ??= []).push({ name: "", description: "", parameters: { type: "object", properties: {} } });
      draw();
      list.lastChild.querySelector("input").focus();
    });
    return [list, more, field(text.toolChoice, choice)];
  }

  #tool(tool, at, remove) {
    const label = `${text.tools} ${at + 1}`;
    const title = h("input", { class: "code", value: tool.name, spellcheck: "false", required: true });
    const named = () => this.#mark(title, `${label}: ${text.toolName}`, title.validity.valid);
    title.addEventListener("input", () => {
      this.#set(tool, "name", title.value);
      named();
    });
    named();
    return h("fieldset", { class: "card" }, h("legend", {}, label), field(text.toolName, title),
      this.#area(tool, "description", text.toolAbout, 2), this.#json(tool, "parameters", text.toolFields, label),
      button(text.toolRemove, remove, { class: "quiet danger" }));
  }

  // A field for an object in JSON; an empty one unsets it, unless it must be there.
  #json(settings, key, label, mark = label, more = {}) {
    const about = h("p", { class: "bad", role: "alert" });
    const control = h("textarea", { class: "code", rows: 6, spellcheck: "false", ...more,
      value: settings[key] ? JSON.stringify(settings[key], null, 2) : "" });
    control.addEventListener("input", () => {
      try {
        this.#set(settings, key, control.value.trim() ? object(control.value) : "");
        this.#mark(control, mark, true);
        fill(about);
      } catch (error) {
        this.#mark(control, mark, false);
        fill(about, error.message);
      }
    });
    return [field(label, control), about];
  }
}

/** The settings of the second answer of two side by side. */
export function otherSettings(settings) {
  const { other, ...own } = settings;
  return { ...own, ...Object.fromEntries(Object.entries(other ?? {}).filter(([, value]) => value !== "" && value !== undefined)) };
}

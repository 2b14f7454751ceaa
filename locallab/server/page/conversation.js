// A conversation: a tree of messages, of which one branch is shown. Pure: nothing here knows the page, the server or the disk.

/**
 * A message is {id, conversation, parent, role, content, created} and, as far as it has them, files, reasoning, calls, call
 * (the id of the call that a tool's result answers), name, status, error, stats, logprobs, model. `parent` null: it begins the
 * conversation. `status` is "streaming", "done", "stopped" or "interrupted".
 */
export class Conversation {
  constructor({ id, title = "", created = Date.now(), changed = Date.now(), settings = {}, chosen = {} }, messages = []) {
    Object.assign(this, { id, title, created, changed, settings, chosen });
    this.messages = new Map();
    this.children = new Map([[null, []]]);
    for (const each of [...messages].sort((one, other) => one.order - other.order)) this.#put(each);
  }

  static create(settings = {}) {
    return new Conversation({ id: newId(), settings });
  }

  /** What is stored of it beside its messages. */
  get head() {
    const { id, title, created, changed, settings, chosen } = this;
    return { id, title, created, changed, settings, chosen };
  }

  #put(message) {
    if (message.parent !== null && !this.messages.has(message.parent)) message.parent = null; // its parent was lost
    this.messages.set(message.id, message);
    this.children.set(message.id, []);
    this.children.get(message.parent).push(message.id);
  }

  /** Add a message below `parent` and make it the shown one of its siblings. Return it. */
  append(parent, fields) {
    const message = { id: newId(), conversation: this.id, parent, created: Date.now(), order: this.messages.size, content: "", ...fields };
    this.#put(message);
    this.chosen[parent ?? ""] = message.id;
    this.changed = Date.now();
    if (!this.title && message.role === "user") this.title = titleOf(message.content);
    return message;
  }

  /** Take over what another copy of this conversation has. */
  absorb(other) {
    Object.assign(this, other.head);
    for (const message of other.messages.values()) {
      if (this.messages.has(message.id)) Object.assign(this.messages.get(message.id), message);
      else this.#put(message);
    }
  }

  siblings(id) {
    return this.children.get(this.messages.get(id).parent);
  }

  /** The child of `parent` that is shown, null if it has none. */
  shown(parent) {
    const children = this.children.get(parent);
    const chosen = this.chosen[parent ?? ""];
    return children.includes(chosen) ? chosen : (children.at(-1) ?? null);
  }

  /** Show the branch of a message. */
  choose(id) {
    for (let at = id; at !== null; at = this.messages.get(at).parent) this.chosen[this.messages.get(at).parent ?? ""] = at;
    this.changed = Date.now();
  }

  /** The shown messages from the first one on, or those up to `id`, whichever branch it is on. */
  path(id) {
    const found = [];
    if (id !== undefined) {
      for (let at = id; at !== null; at = this.messages.get(at).parent) found.unshift(this.messages.get(at));
      return found;
    }
    for (let at = this.shown(null); at !== null; at = this.shown(at)) found.push(this.messages.get(at));
    return found;
  }
}

// randomUUID is only there on pages with TLS or of this machine.
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return a title for a conversation that begins with `text`. */
export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

const parts = {
  image: (file) => ({ type: "image_url", image_url: { url: file.data } }),
  audio: (file) => ({ type: "input_audio", input_audio: { data: file.data.split(",", 2)[1], format: file.name.split(".").at(-1).toLowerCase() } }),
  text: (file) => ({ type: "text", text: `${file.name}:\n${fenced(file.data)}` }),
};

function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) || []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}

function content(message) {
  if (!message.files?.length) return message.content;
  const text = message.content ? [{ type: "text", text: message.content }] : [];
  return [...message.files.map((file) => parts[file.kind](file)), ...text];
}

/** Return messages in the shape of OpenAI's chats. */
export function toRequest(messages, system) {
  const sent = messages.map((message) => {
    if (message.role === "tool") return { role: "tool", tool_call_id: message.call, content: message.content };
    if (message.role === "user") return { role: "user", content: content(message) };
    const calls = message.calls?.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
    return { role: "assistant", content: message.content, ...(calls?.length ? { tool_calls: calls } : {}) };
  });
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

const HEADINGS = { user: "You", assistant: "Assistant", tool: "Result of a tool" };

/** Return the shown branch as Markdown. */
export function toMarkdown(conversation) {
  const texts = conversation.path().map((message) => {
    const calls = (message.calls || []).map((call) => `\n\n\`${call.name}\`\n\n${fenced(call.arguments)}`).join("");
    const files = (message.files || []).map((file) => `\n\n(${file.kind}: ${file.name})`).join("");
    return `## ${HEADINGS[message.role]}${message.model ? ` (${message.model})` : ""}\n\n${message.content}${calls}${files}\n`;
  });
  return `# ${conversation.title || "Conversation"}\n\n${texts.join("\n")}`;
}

const FORMAT = "locallab-conversations";

/** Return conversations as the text of a file that `fromJson` reads. */
export function toJson(conversations) {
  const all = conversations.map((each) => ({ ...each.head, messages: [...each.messages.values()] }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);
}

const OPTIONAL = {
  model: "string", reasoning: "string", name: "string", call: "string", status: "string", error: "string", finish: "string",
  cache: "string", created: "number", order: "number", stats: "object", calls: "object", files: "object", logprobs: "object",
};

function need(holds, place, expected) {
  if (!holds) throw new Error(`${place}: ${expected}`);
}

function readMessage(found, place, ids, conversation) {
  need(found && typeof found === "object", place, "must be an object");
  need(typeof found.id === "string" && typeof found.content === "string", place, "must have the texts id and content");
  need(["user", "assistant", "tool"].includes(found.role), `${place}.role`, "must be user, assistant or tool");
  need(found.parent === null || ids.has(found.parent), `${place}.parent`, "must be null or the id of an earlier message");
  need(!ids.has(found.id), `${place}.id`, "must be no other message's");
  const kept = { id: newId(), conversation, parent: ids.get(found.parent) ?? null, role: found.role, content: found.content };
  for (const [field, kind] of Object.entries(OPTIONAL)) {
    if (found[field] === undefined || found[field] === null) continue;
    need(typeof found[field] === kind, `${place}.${field}`, `must be of the type ${kind}`);
    kept[field] = found[field];
  }
  for (const [at, call] of (kept.calls || []).entries()) {
    need(["id", "name", "arguments"].every((field) => typeof call?.[field] === "string"), `${place}.calls[${at}]`, "must have the texts id, name and arguments");
  }
  for (const [at, file] of (kept.files || []).entries()) {
    const holds = file?.kind in parts && typeof file.name === "string" && typeof file.data === "string";
    need(holds && (file.kind === "text" || file.data.startsWith("data:")), `${place}.files[${at}]`, "must have kind, name and data");
  }
  ids.set(found.id, kept.id);
  return kept;
}

/** Return the conversations in the text of a file, with new ids. Raises Error, which names the field that is wrong. */
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is no JSON: ${error.message}`);
  }
  need(file?.format === FORMAT, "format", `must be "${FORMAT}": the file is no export of conversations`);
  need(Array.isArray(file.conversations), "conversations", "must be a list");
  return file.conversations.map((found, number) => {
    const place = `conversations[${number}]`;
    need(found && Array.isArray(found.messages), `${place}.messages`, "must be a list");
    const id = newId();
    const ids = new Map();
    const messages = found.messages.map((each, at) => ({ order: at, ...readMessage(each, `${place}.messages[${at}]`, ids, id) }));
    const chosen = Object.fromEntries(Object.entries(found.chosen || {}).map(([from, to]) => [ids.get(from) ?? "", ids.get(to)]));
    const settings = found.settings && typeof found.settings === "object" ? found.settings : {};
    return new Conversation({ id, title: String(found.title || ""), created: Number(found.created) || Date.now(), settings, chosen }, messages);
  });
}

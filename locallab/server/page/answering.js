// Answers under way in this tab. They go on while another view is shown.

import { ask } from "./answer.js";
import { announce } from "./dom.js";
import * as store from "./store.js";
import { chat as text } from "./texts.js";

const SAVED = 500; // milliseconds between two writes of an answer that is coming

const conversations = new Map(); // those that are being answered, by id
const controllers = new Map(); // what stops the answer that a message is, by its id

/** What the view wants to know: begun(conversation), changed(conversation, message) and ended(conversation, message, lost). */
export const listeners = new Set();
const tell = (news, ...about) => listeners.forEach((each) => each[news](...about));

let saidUnstored = false;

/** Store a conversation and some of its messages; say once if that fails. */
export async function stored(conversation, messages) {
  try {
    await store.save(conversation, messages);
  } catch (error) {
    if (!saidUnstored) announce(text.unstored(error.message), { bad: true });
    saidUnstored = true;
  }
}

/** Let the server answer: read what comes into `message`, and store it now and then; `fresh` are messages not stored yet. */
export async function answer(conversation, message, messages, settings, fresh = []) {
  const controller = new AbortController();
  controllers.set(message.id, controller);
  conversations.set(conversation.id, conversation);
  message.status = "streaming";
  delete message.error;
  let timer = null;
  const changed = () => {
    tell("changed", conversation, message);
    timer ??= setTimeout(() => {
      timer = null;
      stored(conversation, [message]);
    }, SAVED);
  };
  await stored(conversation, [...fresh, message]);
  tell("begun", conversation);
  const lost = await ask(messages, settings, message, controller.signal, changed);
  clearTimeout(timer);
  controllers.delete(message.id);
  if (!isAnswered(conversation)) conversations.delete(conversation.id);
  conversation.changed = Date.now();
  await stored(conversation, [message]);
  tell("ended", conversation, message, lost);
}

export const isAnswered = (conversation) => [...conversation.messages.keys()].some((id) => controllers.has(id));

/** Stop the answers of a conversation. */
export function stop(conversation) {
  for (const id of conversation.messages.keys()) controllers.get(id)?.abort();
}

/** Return whether the conversation with this id is being answered in this tab. */
export const answersHere = (id) => conversations.has(id);

/** Return a conversation, null if there is none. Its answers that nobody reads any more are interrupted, with all that came. */
export async function load(id) {
  if (conversations.has(id)) return conversations.get(id);
  const conversation = await store.load(id).catch(() => null);
  if (!conversation) return null;
  const unended = [...conversation.messages.values()].filter((message) => message.status === "streaming");
  const live = await Promise.all(unended.map((message) => store.isLive(message.id)));
  const cut = unended.filter((message, at) => !live[at]);
  const rest = cut.length ? store.kept() : null;
  for (const message of cut) {
    Object.assign(message, { status: "interrupted", error: text.reloaded });
    const kept = rest.get(message.id);
    if (kept && kept.content.length >= message.content.length) Object.assign(message, kept);
  }
  if (cut.length) await stored(conversation, cut);
  return conversation;
}

store.answerFor((id) => controllers.has(id));

addEventListener("pagehide", () => {
  store.keep([...conversations.values()].flatMap((each) => [...each.messages.values()]).filter((message) => controllers.has(message.id)));
});

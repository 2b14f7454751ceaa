// Conversations in the browser's database (IndexedDB), and news of them between tabs.

import { Conversation } from "./conversation.js";

const NAME = "locallab";
let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close(); // a newer page in another tab
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opening;
}

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function transaction(mode, work) {
  const open = (await database()).transaction(["conversations", "messages"], mode);
  const done = new Promise((resolve, reject) => {
    open.oncomplete = () => resolve();
    open.onabort = open.onerror = () => reject(open.error);
  });
  const found = await work(open.objectStore("conversations"), open.objectStore("messages"));
  if (mode === "readwrite") await done;
  return found;
}

const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;

function listen(heard) {
  const listener = ({ data }) => heard(data);
  channel?.addEventListener("message", listener);
  return () => channel?.removeEventListener("message", listener);
}

/** Call `heard(id)` when another tab has changed a conversation. Return what ends that. */
export const watch = (heard) => listen((news) => news.changed && heard(news.changed));

/** Tell other tabs which messages are being answered in this one. */
export const answerFor = (has) => listen((news) => has(news.asked) && channel.postMessage({ live: news.asked }));

/** Return whether another tab is reading the answer that a message is. */
export function isLive(id) {
  return new Promise((resolve) => {
    const end = listen((news) => news.live === id && done(true));
    const timer = setTimeout(() => done(false), 150);
    function done(live) {
      clearTimeout(timer);
      end();
      resolve(live);
    }
    channel?.postMessage({ asked: id });
  });
}

/** Return the heads of all conversations, the last changed first. */
export async function list() {
  const heads = await transaction("readonly", (conversations) => result(conversations.getAll()));
  return heads.sort((one, other) => other.changed - one.changed);
}

/** Return a conversation, null if there is none. */
export async function load(id) {
  return transaction("readonly", async (conversations, messages) => {
    const [head, found] = await Promise.all([result(conversations.get(id)), result(messages.index("conversation").getAll(id))]);
    return head ? new Conversation(head, found) : null;
  });
}

/** Store the head of a conversation and some of its messages. */
export async function save(conversation, messages = []) {
  await transaction("readwrite", async (heads, all) => {
    heads.put(conversation.head);
    for (const each of messages) all.put(each);
  });
  channel?.postMessage({ changed: conversation.id });
}

/** Remove a conversation. */
export async function remove(conversation) {
  await transaction("readwrite", async (heads, all) => {
    heads.delete(conversation.id);
    for (const id of conversation.messages.keys()) all.delete(id);
  });
  channel?.postMessage({ changed: conversation.id });
}

/** Return the ids of conversations whose title or messages contain `text`, in any case. */
export async function search(text) {
  const wanted = text.toLowerCase();
  const has = (each) => each.toLowerCase().includes(wanted);
  return transaction("readonly", async (conversations, messages) => {
    const found = new Set((await result(conversations.getAll())).filter((head) => has(head.title)).map((head) => head.id));
    await new Promise((resolve, reject) => {
      const cursor = messages.openCursor();
      cursor.onerror = () => reject(cursor.error);
      cursor.onsuccess = () => {
        const at = cursor.result;
        if (!at) return resolve();
        if (has(at.value.content)) found.add(at.value.conversation);
        at.continue();
      };
    });
    return found;
  });
}

const REST = "locallab-unsaved";

/** Keep the text of messages that are being streamed, while the page goes: the database has no time then. */
export function keep(messages) {
  const texts = messages.map(({ id, content, reasoning }) => ({ id, content, reasoning }));
  try {
    if (texts.length) sessionStorage.setItem(REST, JSON.stringify(texts));
  } catch { /* too long: what was stored half a second ago remains */ }
}

/** Return what `keep` has kept, by the ids of messages, and forget it. */
export function kept() {
  const found = JSON.parse(sessionStorage.getItem(REST) || "[]");
  sessionStorage.removeItem(REST);
  return new Map(found.map((each) => [each.id, each]));
}

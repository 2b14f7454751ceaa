// All texts of the page, by view.

export const app = {
  views: { chat: "Chat", assistant: "Assistant", models: "Models", live: "Live", connect: "Connect" },
  title: (view) => `${view} · LocalLab`,
  key: "API key",
  keyAsked: "This server asks for an API key. It stays in this tab.",
  keyEnter: "Use the key",
  keyCancel: "Without a key",
  keyForget: "Forget the key",
  keyChange: "Enter a key",
  as: (name, role) => `${name || "no key"}, ${role}`,
  lost: "The connection to the server is lost. Trying again…",
  back: "The connection is back.",
  failed: (reason) => `This view cannot be shown: ${reason}`,
  again: "Try again",
};

export const chat = {};

export const assistant = {};

export const models = {};

export const live = {};

export const connect = {};

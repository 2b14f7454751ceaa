// One answer of the server: a chat request, and its stream read into a message.

import { events, send } from "./api.js";
import { toRequest } from "./conversation.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "seed"];

/** The body of a request that answers `messages` with `settings`. Raises Error for a field that is no JSON. */
export function bodyOf(messages, settings) {
  const body = { messages: toRequest(messages, settings.system), stream: true, stream_options: { include_usage: true }, return_progress: true };
  if (settings.model) body.model = settings.model;
  for (const field of NUMBERS) if (settings[field] !== undefined && settings[field] !== "") body[field] = Number(settings[field]);
  if (settings.stop?.length) body.stop = settings.stop;
  if (settings.reasoning_effort) body.reasoning_effort = settings.reasoning_effort;
  if (settings.tools?.length) body.tools = settings.tools.map((tool) => ({ type: "function", function: tool }));
  if (settings.tools?.length && settings.tool_choice) body.tool_choice = settings.tool_choice;
  if (settings.schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: settings.schema } };
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (messages.at(-1)?.role === "assistant") body.continue_final_message = true;
  return body;
}

/** Put what a chunk has into a message: its text, reasoning, calls, log probabilities, finish reason and figures. */
export function take(message, chunk) {
  if (chunk.error) throw new Error(chunk.error.message ?? String(chunk.error));
  if (chunk.model) message.model = chunk.model;
  if (chunk.usage) message.stats = { ...message.stats, ...statsOf(chunk.usage, chunk.timings) };
  if (chunk.prompt_progress) message.progress = chunk.prompt_progress;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  message.content += delta.content ?? "";
  if (delta.refusal) message.content += delta.refusal;
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  for (const call of delta.tool_calls ?? []) {
    const found = ((message.calls ??= [])[call.index] ??= { id: "", name: "", arguments: "" });
    if (call.id) found.id = call.id;
    found.name += call.function?.name ?? "";
    found.arguments += call.function?.arguments ?? "";
  }
  if (choice.logprobs?.content) (message.logprobs ??= []).push(...choice.logprobs.content.map(slim));
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

const slim = ({ token, logprob, top_logprobs: top }) => ({ token, logprob, top: (top ?? []).map((each) => ({ token: each.token, logprob: each.logprob })) });

function statsOf(usage, timings) {
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    completion: usage.completion_tokens,
    rate: timings?.predicted_n > 1 ? timings.predicted_per_second : null,
  };
}

/** Return why the rest of a prompt was not cached, from the header x-locallab-cache. */
export function missOf(header) {
  return header?.match(/stop=([^;]*)/)?.[1]?.trim() ?? "";
}

/**
 * Ask for an answer to `messages` and read it into `message`; `changed` is called after each piece. The message ends with the
 * status done, stopped (by `signal`) or interrupted (an error, which it then has as `error`); what came stays. Raises nothing;
 * returns whether the connection was lost.
 */
export async function ask(messages, settings, message, signal, changed) {
  const began = performance.now();
  const size = () => message.content.length + (message.reasoning?.length ?? 0) + (message.calls?.length ?? 0);
  const before = size();
  let lost = false;
  let first = true;
  try {
    const response = await send("POST", "/v1/chat/completions", bodyOf(messages, settings), { signal });
    message.cache = missOf(response.headers.get("x-locallab-cache"));
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      take(message, JSON.parse(data));
      if (first && size() > before) {
        first = false;
        message.stats = { ...message.stats, ttft: (performance.now() - began) / 1000 };
      }
      changed();
    }
    // a stream that ends without a finish reason was cut on its way
    if (message.finish) message.status = "done";
    else Object.assign(message, { status: "interrupted", error: "The stream ended before the answer did." });
  } catch (error) {
    message.status = signal.aborted ? "stopped" : "interrupted";
    if (!signal.aborted) message.error = error.message;
    lost = error.status === 0;
  }
  delete message.progress;
  changed();
  return lost;
}

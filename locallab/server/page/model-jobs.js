// Pulls, loads, unloads and removals that this tab has asked for. They go on while other views are shown.

import { lines, post, send } from "./api.js";
import { models as text } from "./texts.js";

/** The jobs by model: {kind, model, done, total, rate, error, stop, again}; `error` is the reason of one that failed. */
export const jobs = new Map();

/** Tells of changes: "progress" of a job; "change" of which there are, whose `detail` is {ended, said} once one is over. */
export const news = new EventTarget();

const tell = (kind, detail = {}) => news.dispatchEvent(new CustomEvent(kind, { detail }));

async function run(kind, model, work) {
  if (jobs.has(model) && !jobs.get(model).error) return;
  const stopping = new AbortController();
  const job = { kind, model, done: 0, total: null, rate: 0, error: null };
  job.stop = () => stopping.abort();
  job.again = () => run(kind, model, work);
  jobs.set(model, job);
  tell("change");
  let said = text.stopped(model);
  try {
    await work(job, stopping.signal);
    said = text.ended[kind](model);
  } catch (error) {
    if (error.name !== "AbortError") said = job.error = error.message;
  }
  if (!job.error) jobs.delete(model);
  tell("change", { ended: true, said: !job.error && said });
}

/** Forget a job that failed. */
export function dismiss(model) {
  jobs.delete(model);
  tell("change");
}

/** Fetch a model's weights; leaving the stream ends that. */
export const pull = (model) => run("pull", model, async (job, signal) => {
  const response = await send("POST", "/api/pull", { model }, { signal });
  let last = null;
  let first = null;
  for await (const line of lines(response)) {
    if (line.error || line.detail) throw new Error(line.error || line.detail);
    last = line.status;
    if (line.completed === undefined) continue;
    const now = performance.now();
    first ??= [now, line.completed];
    job.rate = now > first[0] ? ((line.completed - first[1]) / (now - first[0])) * 1000 : 0;
    job.done = line.completed;
    job.total = line.total ?? null;
    tell("progress");
  }
  if (last !== "success") throw new Error(text.cut);
});

export const load = (model) => run("load", model, (job, signal) => post("/models/load", { model_id: model }, { signal }));

export const unload = (model) => run("unload", model, (job, signal) => post("/models/unload", { model_id: model }, { signal }));

export const remove = (model) => run("remove", model, (job, signal) => send("DELETE", "/api/delete", { model }, { signal }));

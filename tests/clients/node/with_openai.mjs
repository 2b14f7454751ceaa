// The openai package.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const base = { model: "smollm2", temperature: 0, max_tokens: 24 };
const messages = [{ role: "user", content: "How is the weather in Oslo?" }];
const Place = z.object({ city: z.enum(["Oslo", "Rome"]), coastal: z.boolean(), people: z.int().min(0).max(99) });
const weather = zodFunction({ name: "weather", parameters: z.object({ city: z.enum(["Oslo", "Rome"]) }) });

const cases = {
  models: async () => (await client.models.list()).data.map((model) => model.id),

  create: async () => {
    const answer = await client.chat.completions.create({ ...base, messages });
    const [choice] = answer.choices;
    return { text: choice.message.content, reason: choice.finish_reason, usage: answer.usage.completion_tokens };
  },

  stream: async () => {
    const options = { stream: true, stream_options: { include_usage: true } };
    let [text, reason, usage] = ["", null, null];
    for await (const chunk of await client.chat.completions.create({ ...base, messages, ...options })) {
      text += chunk.choices[0]?.delta.content ?? "";
      reason = chunk.choices[0]?.finish_reason ?? reason;
      usage = chunk.usage?.completion_tokens ?? usage;
    }
    return { text, reason, usage };
  },

  parse: async () => {
    const format = zodResponseFormat(Place, "place");
    const asked = { ...base, max_tokens: 200, messages, response_format: format };
    return (await client.chat.completions.parse(asked)).choices[0].message.parsed;
  },

  tools: async () => {
    const asked = { ...base, max_tokens: 300, messages, tools: [weather], tool_choice: "required", parallel_tool_calls: false };
    const [choice] = (await client.chat.completions.parse(asked)).choices;
    const [call] = choice.message.tool_calls;
    return { name: call.function.name, arguments: call.function.parsed_arguments, reason: choice.finish_reason };
  },

  streamed_tools: async () => {
    const named = { type: "function", function: { name: "weather" } };
    const asked = { ...base, max_tokens: 300, messages, tools: [weather], tool_choice: named };
    const [choice] = (await client.chat.completions.stream(asked).finalChatCompletion()).choices;
    const [call, ...more] = choice.message.tool_calls;
    return { name: call.function.name, arguments: call.function.parsed_arguments, reason: choice.finish_reason, more };
  },

  responses: async () => {
    const answer = await client.responses.create({ model: "smollm2", input: "What is Oslo?", max_output_tokens: 24 });
    return { text: answer.output_text, status: answer.status, usage: answer.usage.output_tokens };
  },

  overflow: async () => {
    try {
      await client.chat.completions.create({ ...base, messages: [{ role: "user", content: "word ".repeat(5000) }] });
    } catch (error) {
      return { type: error.constructor.name, status: error.status, code: error.code };
    }
  },

  left: async () => {
    const stream = await client.chat.completions.create({ ...base, max_tokens: 2000, messages, stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
    }
    return stream.controller.signal.aborted;
  },
};

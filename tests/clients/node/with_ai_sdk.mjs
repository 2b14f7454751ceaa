// The AI SDK with its provider for servers like OpenAI's, which opencode and others are built on.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const url = process.argv[2];
const provider = createOpenAICompatible({
  name: "locallab",
  baseURL: `${url}/v1`,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const prompt = "How is the weather in Oslo?";
const base = { model: provider("smollm2"), temperature: 0, maxOutputTokens: 24, maxRetries: 0, prompt };
const schema = z.object({ city: z.enum(["Oslo", "Rome"]), coastal: z.boolean(), people: z.int().min(0).max(99) });
const onceAtMost = { locallab: { parallel_tool_calls: false } }; // a provider's own options go into the body as they are
const inputs = [];
const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.enum(["Oslo", "Rome"]) }),
  execute: (input) => {
    inputs.push(input);
    return "rain";
  },
});

const cases = {
  generate: async () => {
    const answer = await generateText(base);
    return { text: answer.text, reason: answer.finishReason, usage: answer.usage.outputTokens };
  },

  stream: async () => {
    const answer = streamText({ ...base, onError: ({ error }) => { throw error; } });
    let text = "";
    for await (const piece of answer.textStream) text += piece;
    return { text, reason: await answer.finishReason, usage: (await answer.usage).outputTokens };
  },

  object: async () => (await generateObject({ ...base, schema, maxOutputTokens: 200 })).object,

  streamed_object: async () => {
    const answer = streamObject({ ...base, schema, maxOutputTokens: 200 });
    let parts = 0;
    for await (const part of answer.partialObjectStream) parts += 1;
    return { parts, object: await answer.object };
  },

  tools: async () => {
    const asked = { ...base, tools: { weather }, toolChoice: "required", providerOptions: onceAtMost, maxOutputTokens: 300 };
    const answer = await generateText(asked);
    return { calls: answer.toolCalls.map(({ toolName, input }) => ({ toolName, input })), reason: answer.finishReason };
  },

  streamed_tools: async () => {
    const toolChoice = { type: "tool", toolName: "weather" };
    const answer = streamText({ ...base, tools: { weather }, toolChoice, maxOutputTokens: 300 });
    const kinds = [];
    for await (const part of answer.fullStream) if (part.type !== kinds.at(-1)) kinds.push(part.type);
    return { kinds, calls: (await answer.toolCalls).map(({ toolName, input }) => ({ toolName, input })) };
  },

  steps: async () => {
    // Goes on by itself with the tool's result in the history.
    inputs.length = 0;
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
    const asked = { ...base, tools: { weather }, prepareStep, providerOptions: onceAtMost, maxOutputTokens: 100 };
    const answer = await generateText({ ...asked, stopWhen: stepCountIs(2) });
    return { steps: answer.steps.map((step) => step.finishReason), inputs };
  },

  overflow: async () => {
    try {
      await generateText({ ...base, prompt: "word ".repeat(5000) });
    } catch (error) {
      return { type: error.name, status: error.statusCode, message: error.message, retryable: error.isRetryable };
    }
  },
};

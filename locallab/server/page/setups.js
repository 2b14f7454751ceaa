// The set-ups of clients. `{url}`, `{model}`, `{key}` and `{context}` stand for the server's address, the model, the API key and
// the tokens of its context. A test holds them equal to those of locallab/cli/doctor/README.md.

/** Each has a `name`, the clients that are `replayed`, and `steps`: texts, in which `...` is code, and {code} blocks. */
export const SETUPS = [
  {
    name: "curl",
    steps: [{ code: `curl {url}/v1/chat/completions \\
  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
  -d '{"model": "{model}", "messages": [{"role": "user", "content": "Hello!"}]}'
` }],
  },
  {
    name: "openai-python",
    replayed: ["openai-python"],
    steps: [{ code: `from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{"role": "user", "content": "Hello!"}])
print(answer.choices[0].message.content)
` }],
  },
  {
    name: "LangChain",
    replayed: ["LangChain"],
    steps: [{ code: `from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url="{url}/v1", api_key="{key}", model="{model}")
print(model.invoke("Hello!").content)
` }],
  },
  {
    name: "Continue",
    replayed: ["Continue"],
    steps: ["`~/.continue/config.yaml`:", { code: `name: LocalLab
version: 1.0.0
schema: v1
models:
  - name: LocalLab
    provider: openai
    model: {model}
    apiBase: {url}/v1
    apiKey: {key}
    roles: [chat, edit, apply]
    capabilities: [tool_use]
  - name: LocalLab, autocomplete
    provider: openai
    model: {small}
    apiBase: {url}/v1
    apiKey: {key}
    roles: [autocomplete]
` }, "Autocomplete needs a model with fill-in-the-middle tokens, such as Qwen2.5-Coder. With `--on-demand keep`, two models stay loaded where memory allows; otherwise name the same model twice."],
  },
  {
    name: "Cline and Roo",
    replayed: ["Cline", "Roo"],
    steps: ["Settings → API Provider `OpenAI Compatible`; Base URL `{url}/v1`; API Key `{key}`; Model ID `{model}`; Context Window Size `{context}`, the same as the server's."],
  },
  {
    name: "aider",
    replayed: ["aider"],
    steps: [{ code: `export OPENAI_API_BASE={url}/v1 OPENAI_API_KEY={key}
aider --model openai/{model} --no-show-model-warnings
` }],
  },
  {
    name: "Zed",
    replayed: ["Zed"],
    steps: ["`settings.json`; start Zed with `LOCALLAB_API_KEY={key}` in its environment, or enter the key in the provider's settings:", { code: `{
  "language_models": {
    "openai_compatible": {
      "LocalLab": {
        "api_url": "{url}/v1",
        "available_models": [
          {
            "name": "{model}",
            "display_name": "LocalLab",
            "max_tokens": {context},
            "capabilities": { "tools": true, "images": false, "parallel_tool_calls": true, "prompt_cache_key": false }
          }
        ]
      }
    }
  }
}
` }],
  },
  {
    name: "Open WebUI",
    replayed: ["Open WebUI"],
    steps: ["On the same machine, whose port 8080 then shows it in a browser:", { code: `docker run -d --network=host -v open-webui:/app/backend/data --name open-webui \\
  -e OPENAI_API_BASE_URL={url}/v1 -e OPENAI_API_KEY={key} ghcr.io/open-webui/open-webui:main
` }, "Open WebUI lists no models while its key is empty. A direct connection from the browser uses the same address; pages of this machine may call the server without further settings."],
  },
  {
    name: "Claude Code",
    replayed: ["Claude Code"],
    steps: ["The address has no `/v1`:", { code: `export ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={key}
export ANTHROPIC_MODEL={model} ANTHROPIC_DEFAULT_HAIKU_MODEL={model}
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
unset ANTHROPIC_API_KEY
claude
` }],
  },
  {
    name: "Codex",
    replayed: ["Codex CLI"],
    steps: ["`~/.codex/config.toml`; start it with `LOCALLAB_API_KEY={key} codex`:", { code: `model = "{model}"
model_provider = "locallab"
model_context_window = {context}

[model_providers.locallab]
name = "LocalLab"
base_url = "{url}/v1"
env_key = "LOCALLAB_API_KEY"
wire_api = "responses"
` }],
  },
  {
    name: "Others",
    replayed: ["opencode", "Cursor"],
    steps: ["opencode, Cursor and other clients of OpenAI's API: base URL `{url}/v1`, API key `{key}`, model `{model}`. Cursor's requests come from its maker's servers, so it needs a public address."],
  },
];

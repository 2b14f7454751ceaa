"""Known fields that the body of Anthropic's messages does not have."""

from __future__ import annotations

from locallab.server.fields.constraint import constraints_refused
from locallab.server.fields.table import Others, left_out, refused, unused

MESSAGES: Others = {
    **constraints_refused("use output_format or output_config.format"),
    **dict.fromkeys(("metadata", "user_profile_id", "workspace_id", "billing_policy"), unused("the service records it")),
    **dict.fromkeys(("service_tier", "speed", "inference_geo"), unused("all requests are served alike, by this machine")),
    "cache_control": unused("prompts find their prefixes without it"),
    "betas": unused("no behaviour depends on them"),
    "diagnostics": unused("the header x-locallab-cache says what a prompt found in the cache"),
    "container": left_out("no code is executed"),
    "mcp_servers": left_out("no other servers are called; offer their functions in tools"),
    **dict.fromkeys(("context_management", "compaction"), unused("conversations are answered as they are sent")),
    **dict.fromkeys(("fallbacks", "fallback_credit_token"), left_out("there is one model for a request")),
    "thread": refused("send the conversation in messages"),
}

"""Known fields that the body of Responses does not have."""

from __future__ import annotations

from locallab.server.dialects.openai.fields import SERVICE
from locallab.server.fields.constraint import Structured
from locallab.server.fields.table import Others, left_out, refused, unused

RESPONSES: Others = {
    **Structured.OTHERS,
    **{name: other for name, other in SERVICE.items() if name not in ("metadata", "user", "store")},
    "background": refused("send the request and wait, or stream it"),
    "background_options": unused("only with background, which is refused"),
    "conversation": refused("use previous_response_id"),
    "prompt": refused("prompt templates belong to the service"),
    "stream_options": unused("events are as long as their text"),
    "max_tool_calls": unused("it limits tools that the service runs, and here is none"),
    "access_programs": left_out("the service has them"),
    "client_metadata": unused("it is for the service's records"),
    "context_management": left_out("truncation says what happens to a conversation that is too long"),
    "image": left_out("no images are made"),
    "enable_response_messages": unused("only the response is returned"),
}

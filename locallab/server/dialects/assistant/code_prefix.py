"""Distinction of prompts that are the beginning of a program, to be continued, from descriptions of one."""

from __future__ import annotations

import re

_CALL = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # parentheses, two levels deep inside
_NAME = r"[A-Za-z_$][\w$]*"

_CODE = (
    # definitions
    rf"(async\s+)?def(\s+{_NAME})?\s*([(:\[].*)?",
    rf"class\s+{_NAME}\s*([({{:<].*|extends\s.*|implements\s.*)?",
    rf"(export\s+)?(default\s+)?(async\s+)?function\s*\*?\s*({_NAME})?\s*(\(.*)?",
    rf"(pub(\(\w+\))?\s+)?(const\s+)?(async\s+)?(unsafe\s+)?fn\s+{_NAME}\s*([(<].*)?",
    rf"func\s+(\(.*|{_NAME}\s*([(<\[].*)?)",
    rf"fun\s+({_NAME}\.)?{_NAME}\s*[(<].*",
    rf"(pub(\(\w+\))?\s+|export\s+|typedef\s+)*(struct|enum|interface|trait|impl|type|namespace|union)\s+{_NAME}.*[{{(;=<].*",
    r"(struct|enum|interface|trait|impl)\s+[A-Z]\w*:?",
    r"(public|private|protected|internal|static|final|abstract|override|virtual|inline|extern|export)\s.*(\w\(|[{;=]).*",
    r"(public|private|protected|internal)\s+(static\s+|final\s+|abstract\s+)*(class|interface|enum|record|void|int)\b.*",
    rf"((unsigned|const|static|inline)\s+)*(int|void|char|float|double|long|short|bool|auto|size_t|u?int\d+_t)[\s*&]+"
    rf"({_NAME}\s*[(=;\[].*|main)",
    rf"(const|let|var|val)\s+(mut\s+)?({_NAME}|[{{\[].*[}}\]])\s*(:.*)?=.*",
    rf"(const|var)\s+{_NAME}\s*[;:]?",
    rf"@{_NAME}(\.{_NAME})*\s*(\(.*)?",
    # imports and the like
    r"import\s+[\w.]+(\s+as\s+\w+)?(\s*,\s*[\w.]+(\s+as\s+\w+)?)*\s*;?",
    r"import\s+(.*\sfrom\s+)?[\"'{*(].*",
    r"from\s+[\w.]+\s+import\b.*",
    r"(using|use|package)\s+[\w.:]+(\{.*\})?\s*;",
    r"package\s+\w+",
    r"#(include|define|ifdef|ifndef|pragma)\b.*|#!.*|#\[.*\].*",
    r"<[?!/A-Za-z][^<]*(>.*)?",
    # statements
    r"for\s+\w+(\s*,\s*\w+)*\s+in\s+([\w.]+\s*[:{]|\w[\w.]*[(\[].*|\d.*|[\[(\"'].*)",
    r"(for|while|if|switch|elif|else if|catch|foreach)\s*\(.*[)=<>!;&|].*",
    r"(if|while|elif)\s+(not\s+)?(\w+|\w[\w.]*[.(\[].*|.*\s(==|!=|<|>|<=|>=|in|is|not)\s.*)\s*[:{]",
    rf"(async\s+)?with\s+{_NAME}(\.{_NAME})*\(.*",
    r"(else|try|finally|do)\s*[:{]|except\b.*:",
    r"(return|yield|raise|throw|assert|await)\s+([\w.]+\(.*|[\w.\"']+\s*(==|[-+*/%<>])\s*.*|.*;)",
    rf"{_NAME}([.:]+{_NAME})*({_CALL}([.\[].*)?\s*[;{{:]?|\([^()]*({_CALL}[^()]*)*(\([^()]*)?)",
    rf"({_NAME})([.\[][\w.\[\]\"'$]*)?(\s*,\s*{_NAME})*(\s*:\s*\w[\w\[\], .|]*)?\s*([-+*/%|&^:]|\*\*|//|<<|>>|\?\?)?=(?!=).*",
    r"\(?[\w\s,]*\)?\s*=>.*",
    r"[^\s].*\)\s*(->.*)?\{",
    # SQL counts in capitals only: in small letters it is English
    r"(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|MERGE INTO|WITH \w+ AS)\b.*",
    # comments and texts
    r"(//|/\*|\"\"\"|'''|--\s|<!--|;;|%%?\s).*",
)
_LINE = re.compile("|".join(f"(?:{pattern})" for pattern in _CODE))
_COMMENT = re.compile(r"#(?!(include|define|ifdef|ifndef|pragma)\b|!|\[).*")
_PROSE = re.compile(r"[A-Za-z][\w'-]*(,? [\w'-]+){3,}[.?!:]?")
LONGEST = 400
"""Characters of a line that are examined."""


def is_code(prompt: str) -> bool:
    """Return whether `prompt` is the beginning of a program, judged by its first line that is not a `#` comment.

    A last line in words makes it a request about code. Comments alone are the beginning of a program too.
    """
    lines = [line.rstrip() for line in prompt.splitlines() if line.strip()]
    program = [line for line in lines if not _COMMENT.fullmatch(line.strip())]
    if not program:
        return bool(lines)
    asks = len(program) > 1 and _PROSE.fullmatch(program[-1]) is not None
    return not asks and _LINE.fullmatch(program[0].strip()[:LONGEST]) is not None

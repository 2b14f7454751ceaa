"""`locallab completion`: what makes a shell complete commands, options and model names."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_LOCALLAB_COMPLETE"

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" word before="" answer kind value
    # The line as it stands: bash cuts words at the colon that names of models have, and completes what is behind it.
    answer=$(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
    word="${line##*[[:space:]]}"
    [[ "$COMP_WORDBREAKS" == *:* && "$word" == *:* ]] && before="${word%%"${word##*:}"}"
    COMPREPLY=()
    for value in $answer; do
        kind="${value%%%%,*}"
        value="${value#*,}"
        case "$kind" in
            dir | file) compopt -o default; COMPREPLY=() ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """As click's, for words with colons."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Says nothing: bash 4.4 is ten years old."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options and the names of models. bash: put eval "$(locallab completion bash)" into ~/.bashrc. zsh:
    the same with zsh into ~/.zshrc, below compinit. fish: locallab completion fish > ~/.config/fish/completions/locallab.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    click.echo(kind(context.find_root().command, {}, "locallab", VARIABLE).source())

"""`locallab completion`: scripts with which a shell completes commands, options and model names."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_LOCALLAB_COMPLETE"

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" word before="" answer kind value
    # The whole line: bash splits words at the colons of model names, and completes only the part after the last one.
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
    """Completion in bash, as by click, but for words with colons."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Skip click's check, which starts a bash: version 4.4 is of 2016."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options and model names. bash: add eval "$(locallab completion bash)" to ~/.bashrc. zsh: add the
    same with zsh to ~/.zshrc, after compinit. fish: locallab completion fish > ~/.config/fish/completions/locallab.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    click.echo(kind(context.find_root().command, {}, "locallab", VARIABLE).source())

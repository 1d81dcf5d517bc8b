"""Print a script that completes the commands and options of ``hf-lottery`` in bash and zsh."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from importlib import import_module

from .catalogue import CATALOGUE
from .outcome import Outcome
from .plain_parser import PlainParser

_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
_SCRIPT = """\
_hf_lottery() {{
    local words="{commands} --help --version" word="${{COMP_WORDS[COMP_CWORD]}}"
    COMPREPLY=()
    if [ "$COMP_CWORD" -gt 1 ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
            *) return ;;
        esac
        case "$word" in -*) ;; *) return ;; esac  # a value: files, by default
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hf_lottery hf-lottery
"""


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("completion")
    parser.add_argument("shell", choices=("bash", "zsh"), help="The shell.")
    shell = parser.parse(arguments).shell
    cases = "\n".join(f'            {name}) words="{" ".join(_options(name))}" ;;' for name in CATALOGUE)
    script = _SCRIPT.format(commands=" ".join(CATALOGUE), cases=cases)
    return Outcome({}, text=(_ZSH if shell == "zsh" else "") + script)


def _options(name: str) -> list[str]:
    """Return the options of a command, as its help lists them."""
    package = __name__.partition(".commands")[0]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        import_module(f"{package}.{CATALOGUE[name].module}").main(["--help"])
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("  -")]  # explanations stand deeper
    options = dict.fromkeys(option for line in lines for option in re.findall(r"(?<!\S)--[\w-]+", line))
    spelled = {option: f"--{option[2:].replace('-', '_')}" for option in options}
    # Options of a Trainer are listed twice, with _ and with -.
    return [option for option in options if spelled[option] == option or spelled[option] not in options]

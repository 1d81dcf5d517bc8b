"""RecipeParser: options from YAML files and the command line.

A YAML file gives defaults, the command line wins, and a misspelled option is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from .catalogue import CATALOGUE
from .plain_parser import JSON_HELP, mistake, nearest

# The options of the Trainer that everybody needs.
_USUAL = {
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "seed", "use_cpu",
    "resume_from_checkpoint",
}  # fmt: skip


class RecipeParser(HfArgumentParser):
    """An HfArgumentParser that also takes ``--config file.yaml`` and names the nearest key of an unknown one.

    Args:
        dataclass_types: The dataclasses to fill, as for HfArgumentParser.
        name: The command of ``hf-lottery`` whose examples the help shows. Default: a script of your own.

    Attributes:
        taken: The defaults that another option gave; see :meth:`parse`.

    Example::

        parser = RecipeParser([ModelArguments, LotteryArguments])
        model_arguments, arguments = parser.parse()
    """

    def __init__(self, dataclass_types: Any, name: str | None = None, **kwargs):
        if name is not None:
            entry = CATALOGUE[name]
            kwargs |= {"prog": f"hf-lottery {name}", "usage": "%(prog)s [--config FILE] [--OPTION VALUE ...]"}
            kwargs["description"] = f"{entry.about[0].upper()}{entry.about[1:]}.\n\n{entry.epilog(name)}"
            kwargs["formatter_class"] = argparse.RawDescriptionHelpFormatter
        # Without this, an abbreviated flag is accepted silently: --spars for --sparsity.
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.add_argument("--config", help="A YAML file of defaults. The command line wins, then the last file.")
        if name is not None:
            self.add_argument("--json", action="store_true", help=JSON_HELP)
            output = next(action for action in self._actions if action.dest == "output_dir")
            output.default = str(Path("outputs", name))
            output.help = f"Folder to write to. Default: {output.default}."
        self.taken: Mapping[str, Any] = {}
        if not sys.stderr.isatty():  # a bar would fill a log file
            self.set_defaults(disable_tqdm=True)

    def format_help(self) -> str:
        """Return the help: first the library's own options and the usual ones, then the others of the Trainer."""
        others = {field.name for field in fields(TrainingArguments)} - _USUAL
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, is_other in (("options", False), ("other options of the Trainer of transformers", True)):
            formatter.start_section(title)
            formatter.add_arguments([action for action in self._actions if (action.dest in others) == is_other])
            formatter.end_section()
        return formatter.format_help()

    def parse(
        self,
        arguments: Sequence[str] | None = None,
        *,
        given_by: str = "",
        read: Callable[[str, set[str]], Mapping[str, Any]] | None = None,
    ) -> tuple[Any, ...]:
        """Parse a command line into the dataclasses.

        Args:
            arguments: The command line. Default: that of this process.
            given_by: The option whose value knows defaults of other options, such as ``ticket``.
            read: Reads these defaults, given that value and the names of the options that the user gave. The command
                line and files win. Default: no option knows others.

        Returns:
            One instance of each dataclass, in their order.

        Raises:
            SystemExit: With a message on standard error, for an unknown key or a bad value.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        configs = self._take_configs(arguments)
        given = {text.split("=")[0].lstrip("-").replace("-", "_") for text in arguments if text.startswith("--")}
        for path in configs:
            given |= self._set_defaults(path, self._ruled_out(given))
        parsed = self._parse(arguments)
        if read is not None:  # behind the first parsing, which tells what is wrong in the command line itself
            source = next(vars(options)[given_by] for options in parsed if given_by in vars(options))
            self._take(read(source, given), given)
            parsed = self._parse(arguments)
        return parsed

    def _parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(
                list(arguments), return_remaining_strings=True, look_for_args_file=False
            )
            if flags := [text.split("=")[0] for text in unknown if text.startswith("--")]:
                self._unknown("the command line", [flag[2:] for flag in flags])
            if unknown:
                self.error(f"every value must belong to a flag; received {unknown[0]!r}.")
        except (ValueError, NotImplementedError) as error:
            self.error(str(error))
        # The last of them holds --config, which belongs to no dataclass.
        return tuple(parsed[: len(list(self.dataclass_types))])

    def error(self, message: str) -> NoReturn:
        """Stop with one line that says what is wrong, without the usage of two hundred flags."""
        self.exit(2, mistake(self.prog, message))

    def _take_configs(self, arguments: list[str]) -> list[Path]:
        paths = []
        while "--config" in (flags := [text.split("=")[0] for text in arguments]):
            i = flags.index("--config")
            flag, _, value = arguments.pop(i).partition("=")
            if not value and i >= len(arguments):
                self.error(f"{flag} must name a YAML file; received nothing.")
            paths.append(Path(value or arguments.pop(i)))
        return paths

    def _ruled_out(self, given: set[str]) -> set[str]:
        """Return the keys of a file that the command line replaces by an alternative: `--levels 3` drops sparsity."""
        pairs = [pair for kind in self.dataclass_types for pair in getattr(kind, "ALTERNATIVES", ())]
        return {other for pair in pairs for one, other in (pair, pair[::-1]) if one in given}

    def _take(self, values: Mapping[str, Any], given: set[str]) -> None:
        """Take values as defaults, unless the user named the option, or another network in place of it."""
        networks = {"model_name_or_path", "config_name", "model_type"}
        left_out = given | (networks | {"model_revision", "processing_name"} if given & networks else set())
        self.taken = {name: value for name, value in values.items() if name not in left_out}
        self.set_defaults(**self.taken)

    def _set_defaults(self, path: Path, ruled_out: set[str]) -> set[str]:
        """Take the values of a file as defaults; return their names."""
        import yaml

        if not path.is_file():
            self.error(f"--config must name a YAML file; received {path}, which does not exist.")
        try:
            values = yaml.load(path.read_text(), _loader()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"{path} must be YAML; received: {error}")
        if not isinstance(values, dict):
            self.error(f"{path} must hold keys and values; received {type(values).__name__}.")
        if unknown := [key for key in values if key not in self._known()]:
            self._unknown(str(path), unknown)
        for action in self._actions:  # a flag that is on by default has two actions: --x and --no_x
            if action.dest in values and action.dest not in ruled_out:
                value = values[action.dest]
                if (value is None and action.default is not None) or (isinstance(value, list) and action.nargs is None):
                    self.error(f"{path}: {action.dest} must have a value of its own type; received {value!r}.")
                # argparse converts text to the type of the field. YAML itself reads 1e-3 as text.
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                action.default = str(value) if is_number else value
                action.required = False
        return set(values) - ruled_out

    def _known(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest not in ("config", "help", "json")]

    def _unknown(self, where: str, keys: Iterable[Any]) -> NoReturn:
        self.error(f"{where} must hold known keys; received {nearest(keys, self._known())}.")


def _loader() -> Any:
    """Make a YAML loader that reads 2:4 as text, as on the command line; YAML 1.1 reads a number of base 60."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?[0-9][0-9_]*$|0x[0-9a-fA-F_]+$|0o?[0-7_]+$")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:int"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", number, list("-+0123456789"))
    return Loader

"""Run by test_several_processes.py: commands one after the other; each process says what it printed and wrote."""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command lines in ``commands.json``; for a command that stops, note why."""
    folder, outputs, written = Path(sys.argv[1]), [], []

    def watch(event, arguments):
        path = str(arguments[0]) if arguments else ""
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (writes or event in ("os.mkdir", "os.rename", "os.link")) and path.startswith(str(folder / "out")):
            written.append(path)

    sys.addaudithook(watch)
    for module, *arguments in json.loads((folder / "commands.json").read_text()):
        sys.argv = [f"{module}.py", *arguments]
        with contextlib.redirect_stdout(io.StringIO()) as text:
            try:
                importlib.import_module(f"hf_lottery.hf.{module}").main()
            except SystemExit as stopped:
                print("stopped:", stopped.code)
        outputs.append(text.getvalue())
    # Two processes that do not know of each other have a rank all the same.
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps({"outputs": outputs, "written": written}))


if __name__ == "__main__":
    main()

"""Run by test_several_processes.py: commands one after the other; each process says what it printed and wrote."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from hf_lottery.hf.commands.main import main


def run() -> None:
    """Run the command lines in ``commands.json``; for a command that stops, note why."""
    folder, outputs, written = Path(sys.argv[1]), [], []

    def watch(event, arguments):
        path = str(arguments[0]) if arguments else ""
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (writes or event in ("os.mkdir", "os.rename", "os.link")) and path.startswith(str(folder / "out")):
            written.append(path)

    sys.addaudithook(watch)
    for name, *arguments in json.loads((folder / "commands.json").read_text()):
        sys.argv = ["hf-lottery", name, *arguments]
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(io.StringIO()) as errors:
            status = main([name, *arguments])
        outputs.append(f"stopped: {errors.getvalue()}" if status else text.getvalue())
    # Two processes that do not know of each other have a rank all the same.
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps({"outputs": outputs, "written": written}))


if __name__ == "__main__":
    run()

"""Runs commands of medlt one after another in this process: a line of arguments each, from the file given.

Exit code 1 is an answer too: of a check or an audit that nothing passed.
"""

import shlex
import sys
from pathlib import Path

from medlt.cli import app

if __name__ == "__main__":
    for line in Path(sys.argv[1]).read_text().splitlines():
        try:
            app(shlex.split(line), standalone_mode=False)
        except SystemExit as end:
            code = end.code
        except Exception as error:  # typer's Exit outside of its standalone mode
            code = getattr(error, "exit_code", error)
        else:
            code = 0
        sys.stderr.write(f"{code}: {line}\n")
        if code not in (0, 1, None):
            sys.exit(f"{line} ended with {code!r}")

"""Everything that is called from a shell: the scripts of the workflow, and the command `segpipe`.

`run` starts a script of the workflow (scripts.py). `segpipe <verb>` is main.py, with one module here per verb.
"""

from segpipe.cli.scripts import run

__all__ = ["run"]

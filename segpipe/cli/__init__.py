"""Everything that is called from a shell: the scripts of the workflow, and the command `segpipe`.

`scripts.run` starts a script of the workflow. `segpipe <verb>` is main.py, with one module here per verb.
"""

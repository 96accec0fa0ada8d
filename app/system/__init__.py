"""This machine and its processes: memory and GPUs, child processes and what is said to them, locks on files.

Imports nothing else of the application, and knows nothing of what the processes are for. Start at `json_lines` for a
child process that answers requests, at `supervisor` for one that is started again when it dies, and at `child_process`
for how a child dies with its parent.
"""

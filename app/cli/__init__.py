"""The `fitserve` command, and the demonstration.

May import the rooms that its commands start: `serve` needs server, `work` needs jobs. The commands that talk to a service
(remote.py) use the client alone. Start reading at main.py; display.py is what a user sees on a terminal.
"""

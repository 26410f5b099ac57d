"""The workspace in a browser: a server for one reader on this machine, and its page."""

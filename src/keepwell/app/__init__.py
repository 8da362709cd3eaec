"""Who calls Keepwell: the command line, the control API, the pages and the worker; and the wiring of them all."""

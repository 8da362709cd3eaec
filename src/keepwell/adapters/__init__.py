"""What Keepwell calls, one outside thing a module; each implements a port of ``keepwell.core``."""

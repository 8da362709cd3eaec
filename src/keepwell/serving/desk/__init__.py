"""The desk: decoded rows are assigned, computed, logged and answered, a tick at a time."""

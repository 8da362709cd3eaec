"""The HTTP faces of Keepwell: its own control API, and MLflow's REST for tracking clients."""

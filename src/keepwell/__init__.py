"""Keepwell keeps machine-learning models well in production: released, served, watched and renewed with evidence."""

from keepwell.core.project import feature_view, model, on_demand, source

__version__ = "0.1.0"

__all__ = ["__version__", "feature_view", "model", "on_demand", "source"]

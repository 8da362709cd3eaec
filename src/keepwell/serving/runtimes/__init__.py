"""Runtimes: models that compute in processes of their own, one for all workers of a gateway.

``tended`` is the parent's side: it starts them, begins them again and ends them. ``links`` is a worker's side: what a
model call is while the event loop goes on. What runs inside is ``keepwell.training.predictors.process``.
"""

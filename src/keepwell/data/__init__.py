"""Data as it was known: snapshots of sources, features as of a decision, training sets, decision rows."""

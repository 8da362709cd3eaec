"""Watching: windows of live decisions, monitors, alerts, the value ledger. It decides; it acts on nothing."""

"""The nouns of Keepwell as frozen records: one file a family, one class a noun."""

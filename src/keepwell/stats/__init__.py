"""The arithmetic of evidence: arrays in, frozen results out, no files, no hidden chance."""

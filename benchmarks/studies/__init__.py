"""The studies of `make bench-stats`, one a file.

A study is a module here with `study(quick: bool) -> list[Row]` (`benchmarks.rows`): it draws all its
randomness from generators seeded with numbers written in it, and gives the same rows for the same
`quick`. With `quick` it takes a few seconds at most; the bars stay, with the slack that the shorter
run's own error demands (`share_error`). What it has to say while it runs goes to stderr.
"""

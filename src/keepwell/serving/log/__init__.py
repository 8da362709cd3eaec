"""The prediction log: what is written before an answer leaves, how it is kept, and how it is read again."""

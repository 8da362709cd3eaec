"""How requests come in: HTTP/1.1, TLS and the tokens at the gate."""

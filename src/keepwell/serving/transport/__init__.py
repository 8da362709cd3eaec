"""How requests come in and answers leave: HTTP/1.1, gRPC, TLS, the tokens at the gate, and the floor they share."""

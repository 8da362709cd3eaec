"""What a gateway tells of itself: counts for Prometheus, spans, and a line a request."""

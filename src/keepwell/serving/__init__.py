"""The data plane: answers requests by the traffic plan, writes every decision down before it answers. Starts alone."""

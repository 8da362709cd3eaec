"""The dashboard: pages rendered on the server from rows, with shipped assets and no build step; works offline."""

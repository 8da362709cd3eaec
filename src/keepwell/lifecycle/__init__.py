"""From candidate to champion and back: releases, activations, approvals, renewal. Rows in, rows out."""

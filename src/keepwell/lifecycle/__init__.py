"""From candidate to champion and back: releases, activations, approvals, renewal. Reads and writes rows; serves nothing."""

"""What the rooms need from outside, as small protocols; ``keepwell.adapters`` implements them."""

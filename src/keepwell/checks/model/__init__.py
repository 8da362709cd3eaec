"""Is this model good enough, everywhere, and better than no model?"""

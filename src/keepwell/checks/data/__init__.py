"""Is this data what we take it for?"""

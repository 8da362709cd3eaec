"""Is this artefact whole and harmless?"""

"""From a training set to a registered version: fit, prove, package, record."""

"""The outside world behind one resource each: warehouse, source of counts, model registry, bundles."""

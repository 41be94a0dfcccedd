"""Building blocks of model files: parameters with their names, and the coarse ops bound to them."""

"""`clq-client batch`: any number of images, each exactly once in the result."""

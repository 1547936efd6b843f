"""Pages of our own: words, parts of component libraries, layouts; and pages around shipped snippets."""

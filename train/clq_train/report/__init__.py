"""An assessment for a person: lines for a terminal, and one HTML page."""

"""Model cards and licences."""

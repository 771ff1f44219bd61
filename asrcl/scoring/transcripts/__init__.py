"""Transcript files: reading and writing them, scoring one against another, reports in the layout of other toolkits."""

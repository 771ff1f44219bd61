"""Runs to pages: summaries, tables, figures, Markdown and HTML."""

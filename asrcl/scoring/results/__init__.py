"""What a run leaves behind: its counts, the metrics that follow from them, and where on disk they lie."""

"""Whether a difference is real: intervals over speakers, paired tests, and how often these tests reject."""

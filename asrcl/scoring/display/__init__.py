"""Tables and figures as such: what several rooms write and draw with. Knows nothing of errors or results."""

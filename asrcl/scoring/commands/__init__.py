"""What `asrcl score`, `compare`, `report` and `results` do, as functions that return what is to be printed."""

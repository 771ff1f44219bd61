"""The commands of `asrcl`, a module for each area; they parse, import what is needed, and make one call."""

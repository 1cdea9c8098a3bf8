//! Prints a graph in the manner of HLO text.

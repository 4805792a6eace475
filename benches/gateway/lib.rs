//! Nothing: the package has a bench and the programs that it starts.

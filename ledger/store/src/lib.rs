//! Durable storage of the log: write-ahead log, tiles, checkpoints.

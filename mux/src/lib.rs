//! Named streams over the one wire between a machine and its host.

//! Starts and stops sandboxes at a named boundary and reports the boundary that was really built.

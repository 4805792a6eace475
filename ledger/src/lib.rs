//! Formats for what an attested agent does: calls, grants, decisions, outcomes, receipts, and the Merkle log.

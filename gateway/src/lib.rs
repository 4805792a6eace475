//! The only way from a sandbox to the world: signed calls in, receipts out.

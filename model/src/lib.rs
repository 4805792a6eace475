//! Software models of TEE issuers: the real formats, signed under a locally made root.

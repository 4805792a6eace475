//! The service a tenant runs: challenge, appraise, release.

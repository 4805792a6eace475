-- One schema. Times are seconds since 1970; text is UTF-8.

-- Nonces that were used, until they would be too old anyway.
CREATE TABLE nonces (
    digest BLOB PRIMARY KEY NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX nonces_expires_at ON nonces (expires_at);

-- Identities that attested. The sealing key never changes, the epoch never falls.
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY NOT NULL,
    identity_key BLOB NOT NULL,
    sealing_key BLOB NOT NULL,
    epoch BIGINT NOT NULL,
    task TEXT NOT NULL,
    bundle BLOB NOT NULL,
    attested_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);

-- Everything that each affirmed result can be proved with again.
CREATE TABLE bundles (
    digest BLOB PRIMARY KEY NOT NULL,
    sandbox TEXT NOT NULL,
    made_at BIGINT NOT NULL,
    bytes BLOB NOT NULL
);

-- Secrets, sealed under the key file together with their terms.
CREATE TABLE secrets (
    name TEXT PRIMARY KEY NOT NULL,
    risk TEXT NOT NULL,
    ttl_seconds BIGINT NOT NULL,
    sealed BLOB NOT NULL,
    stored_at BIGINT NOT NULL
);

CREATE TABLE leases (
    id TEXT PRIMARY KEY NOT NULL,
    secret TEXT NOT NULL,
    sandbox TEXT NOT NULL,
    released_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX leases_sandbox ON leases (sandbox);
CREATE INDEX leases_released_at ON leases (released_at);

-- What was decided, in order. A row is here before the answer leaves.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at BIGINT NOT NULL,
    event TEXT NOT NULL,
    outcome TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);

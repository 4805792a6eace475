-- The endorsements that affirmed results rested on, by issuer and subject:
-- evaluation numbers, CRL numbers, times, each with when it was first seen.
-- 20 octets, high first.
CREATE TABLE seen (
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (name, value)
);

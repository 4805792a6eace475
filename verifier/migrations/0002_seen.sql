-- The newest endorsements that an affirmed result rested on, by issuer and
-- subject: evaluation numbers, CRL numbers, times. 20 octets, high first.
CREATE TABLE seen (
    name TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
);

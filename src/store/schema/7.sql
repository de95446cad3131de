-- A grant of AWS KMS that the broker has made for somebody, written down before KMS is asked. Times
-- are milliseconds since 1970 by this store's clock.
CREATE TABLE kms_grants (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    -- The KMS key.
    arn TEXT NOT NULL,
    grantee TEXT NOT NULL,
    -- As bits.
    operations BIGINT NOT NULL,
    creator TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    -- KMS's own id of it; '' until KMS has answered.
    kms_id TEXT NOT NULL,
    -- From when on there must be no such grant in KMS, and when to try that next.
    due BIGINT NOT NULL,
    retry BIGINT NOT NULL,
    -- What kept it from ending when that was last tried; '' where nothing has.
    obstacle TEXT NOT NULL,
    -- Whether KMS has no such grant any more.
    over BIGINT NOT NULL,
    -- Why it is to end before its time; '' where nobody has said so.
    ending TEXT NOT NULL,
    -- Its name in KMS.
    name TEXT NOT NULL
);
CREATE INDEX kms_grants_due ON kms_grants (over, due);
CREATE INDEX kms_grants_of_key ON kms_grants (tenant, key_id, id);

-- Which broker ends grants of KMS that are due, and until when no other does.
CREATE TABLE kms_grants_turn (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    holder TEXT NOT NULL,
    until BIGINT NOT NULL
);
INSERT INTO kms_grants_turn VALUES (1, '', 0);

-- Which store the names of its grants are from: drawn with the first of them, and the same in every
-- copy of the store.
CREATE TABLE kms_grants_origin (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    origin TEXT NOT NULL
);

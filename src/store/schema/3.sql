-- A grant. What is not there is '' or 0; times are milliseconds since 1970 by this store's clock.
CREATE TABLE grants (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    grantee TEXT NOT NULL,
    retiring TEXT NOT NULL,
    -- As bits.
    operations BIGINT NOT NULL,
    -- 0 none, 1 equals, 2 subset; the pairs as a JSON object.
    constrained BIGINT NOT NULL,
    pairs TEXT NOT NULL,
    name TEXT NOT NULL,
    -- In seconds, as they were asked for.
    lifetime BIGINT NOT NULL,
    renewable BIGINT NOT NULL,
    max_uses BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    creator TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    -- The number of the change that made it.
    change BIGINT NOT NULL,
    -- '<id>:<change>' of each grant that it rests on, its parent last, between commas.
    ancestors TEXT NOT NULL,
    -- 0 not ended, 1 retired, 2 revoked, 3 spent.
    ending BIGINT NOT NULL,
    -- The number of the latest change of it.
    changed BIGINT NOT NULL
);
CREATE INDEX grants_changed ON grants (changed);
CREATE INDEX grants_of_key ON grants (tenant, key_id, id);
CREATE INDEX grants_retirable ON grants (tenant, retiring, id);
CREATE INDEX grants_named ON grants (tenant, key_id, creator, name);
CREATE INDEX grants_expires ON grants (expires);

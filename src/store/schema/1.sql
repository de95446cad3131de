-- The number of the latest change. Taken in the change's own transaction: whoever takes the next one
-- waits here for the commit, so that numbers are in the order of commits.
CREATE TABLE change (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    n BIGINT NOT NULL
);
INSERT INTO change VALUES (1, 0);

CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    -- A tenants file of this tenant alone; NULL once it was removed.
    document TEXT,
    -- The number of the change that this is from.
    changed BIGINT NOT NULL
);
CREATE INDEX tenants_changed ON tenants (changed);

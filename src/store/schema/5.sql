-- A broker that shares the store. Times are milliseconds, since 1970 by this store's clock.
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The number of the change up to which it knows all of tenants.
    applied BIGINT NOT NULL,
    -- For how long it goes by that.
    staleness BIGINT NOT NULL,
    -- When it said so.
    seen BIGINT NOT NULL
);

-- The number of the change that last had the tenant's data keys dropped.
ALTER TABLE tenants ADD COLUMN purged BIGINT NOT NULL DEFAULT 0;

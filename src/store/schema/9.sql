-- The name of a grant of AWS KMS in KMS.
ALTER TABLE kms_grants ADD COLUMN name TEXT NOT NULL DEFAULT '';
UPDATE kms_grants SET name = 'keybroker-' || id;

-- Which store the names of its grants are from: drawn with the first of them, and the same in every
-- copy of the store.
CREATE TABLE kms_grants_origin (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    origin TEXT NOT NULL
);

-- For who asks what a grantee has of a key: grants for it alone, and those for all that fit a pattern.
CREATE INDEX grants_of_grantee ON grants (tenant, key_id, grantee);
CREATE INDEX grants_of_pattern ON grants (tenant, key_id) WHERE grantee <> replace(grantee, '*', '');

-- Whether the tenant is suspended: apart from the document, which files bring in anew.
ALTER TABLE tenants ADD COLUMN suspended BOOLEAN NOT NULL DEFAULT FALSE;

-- Why a grant of AWS KMS is to end before its time; '' where nobody has said so.
ALTER TABLE kms_grants ADD COLUMN ending TEXT NOT NULL DEFAULT '';

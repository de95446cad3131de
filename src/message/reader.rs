//! Takes fields off the front of received bytes: every length is checked, nothing is copied.

/// The bytes that have not been read yet.
pub(super) struct Reader<'a>(&'a [u8]);

/// The bytes end before the field does.
#[derive(Debug)]
pub(super) struct Short;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Short> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(Short)?;
        self.0 = rest;
        Ok(field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Short> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Short)?;
        self.0 = rest;
        Ok(field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Short> {
        self.array().copied().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        self.array().copied().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        self.array().copied().map(u64::from_be_bytes)
    }
}

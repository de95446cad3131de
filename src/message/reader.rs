//! Takes fields off the front of received bytes: every length is checked, nothing is copied.

/// The bytes that have not been read yet.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    missing: usize,
}

/// The bytes end before the field does.
#[derive(Debug)]
pub(crate) struct Short;

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            missing: 0,
        }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes the field lacks that did not fit; 0 as long as every field did.
    pub(crate) fn missing(&self) -> usize {
        self.missing
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Short> {
        match self.rest.split_at_checked(length) {
            Some((field, rest)) => {
                self.rest = rest;
                Ok(field)
            }
            None => Err(self.short(length)),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Short> {
        match self.rest.split_first_chunk() {
            Some((field, rest)) => {
                self.rest = rest;
                Ok(field)
            }
            None => Err(self.short(N)),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().copied().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().copied().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().copied().map(u64::from_be_bytes)
    }

    fn short(&mut self, length: usize) -> Short {
        self.missing = length - self.rest.len();
        Short
    }
}

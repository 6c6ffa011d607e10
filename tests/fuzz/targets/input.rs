//! Reads numbers and pieces from the bytes of a fuzzer. Behind their end everything is 0.

/// Bytes that are not read yet.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes up to `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes everything.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn number<const LEN: usize>(&mut self) -> u64 {
        self.take(LEN).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::try_from(self.number::<1>()).unwrap_or_default()
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::try_from(self.number::<2>()).unwrap_or_default()
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::try_from(self.number::<4>()).unwrap_or_default()
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.number::<8>()
    }

    /// Takes a number below `end`.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.u32() % end
    }

    /// Takes a number that is small in most cases, and otherwise any.
    pub(super) fn mostly_small(&mut self, end: u32) -> u32 {
        if self.u8() < 230 { u32::from(self.u16()) % end.max(1) } else { self.u32() }
    }
}

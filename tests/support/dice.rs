//! Chance that a failing test can be run with again.

/// A row of numbers that look random and follow from the first.
pub struct Dice(u64);

impl Dice {
    /// Starts from `seed`, which the test prints.
    pub fn new(seed: u64) -> Self {
        // Of a small seed, the first numbers would be small too.
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.next();
        dice
    }

    /// A number from 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A size from 1 to `most` bytes: small ones are as likely as large ones.
    pub fn size(&mut self, most: u64) -> u64 {
        let magnitude = 1 << self.below(u64::from(most.ilog2()) + 1);
        (magnitude + self.below(magnitude)).min(most)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

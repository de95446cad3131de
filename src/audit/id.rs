//! Ids of records: UUIDv7 whose random part counts up from a random start (RFC 9562, section 6.2,
//! method 2). Randomness for each would be a system call for each.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use uuid::Builder;
use uuid::Uuid;

/// Hands out ids that no other process shares, in order within a millisecond.
pub(super) struct Ids {
    high: [u8; 2],
    low: AtomicU64,
}

impl Ids {
    pub(super) fn new() -> Self {
        let random = Uuid::now_v7();
        let [_, _, _, _, _, _, a, b, ..] = random.into_bytes();
        let (_, low) = random.as_u64_pair();
        Self {
            high: [a, b],
            // 62 bits of it stand in an id; the uppermost is left for counting.
            low: AtomicU64::new((low << 2) >> 3),
        }
    }

    pub(super) fn next(&self, now: Timestamp) -> Uuid {
        let [a, b] = self.high;
        let [c, d, e, f, g, h, i, j] = self.low.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        // A clock before 1970 has no id of this kind, and no certificate that is good.
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        Builder::from_unix_timestamp_millis(millis, &[a, b, c, d, e, f, g, h, i, j]).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_millisecond_are_distinct_and_in_order() {
        let ids = Ids::new();
        let now = Timestamp::from_millisecond(1_800_000_000_123).unwrap();
        let drawn: Vec<Uuid> = (0..1000).map(|_| ids.next(now)).collect();
        assert!(drawn.is_sorted_by(|one, next| one < next));
        for id in &drawn {
            assert_eq!(id.get_version_num(), 7);
            let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
            assert_eq!((seconds, nanos), (1_800_000_000, 123_000_000));
        }
    }

    #[test]
    fn processes_share_no_ids() {
        let now = Timestamp::UNIX_EPOCH;
        assert_ne!(Ids::new().next(now), Ids::new().next(now));
    }
}

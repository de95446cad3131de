//! The identity of a cache entry: a hash over fixed-length parts, so that two entries are one
//! exactly when all their parts are.

use crate::crypto::digest::sha256;
use crate::directory::Key;
use crate::message::EncryptedDataKey;

/// `SHA-256(H(tenant) ‖ direction ‖ suite ‖ H(key) ‖ u64 generation ‖ H(context) ‖ wraps)`, where
/// `wraps` is zeros to seal; to open by one wrapped key it is `w`, `SHA-256(H(provider) ‖ H(provider
/// info) ‖ H(ciphertext))`, and by one more each time `SHA-256(wraps before ‖ w)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id([u8; 32]);

impl Id {
    /// The entry that seals under `key` with the serialized context `pairs`.
    pub(super) fn sealing(key: &Key, pairs: &[u8]) -> Self {
        Self::new(key, SEALING, pairs, [0; 32])
    }

    /// The entry that opens what `wraps` are the data key of, all those that may open it in their
    /// order; none if there are none.
    pub(super) fn opening<'w>(
        key: &Key,
        pairs: &[u8],
        wraps: impl IntoIterator<Item = &'w EncryptedDataKey>,
    ) -> Option<Self> {
        let digests = wraps.into_iter().map(|wrapped| {
            let parts = [
                sha256(wrapped.provider_id.as_bytes()),
                sha256(wrapped.provider_info.as_bytes()),
                sha256(&wrapped.ciphertext),
            ];
            sha256(parts.as_flattened())
        });
        let wraps = digests.reduce(|before, one| sha256([before, one].as_flattened()))?;
        Some(Self::new(key, OPENING, pairs, wraps))
    }

    fn new(key: &Key, direction: u8, pairs: &[u8], wraps: [u8; 32]) -> Self {
        let [suite_high, suite_low] = SUITE;
        let [tenant, id] = key.digests();
        let mut parts = [0; 139];
        let mut rest = parts.as_mut_slice();
        for part in [
            tenant.as_slice(),
            &[direction, suite_high, suite_low],
            id,
            &key.generation().to_be_bytes(),
            &sha256(pairs),
            &wraps,
        ] {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        debug_assert!(rest.is_empty(), "every byte is a part's");
        Self(sha256(&parts))
    }
}

#[cfg(test)]
impl Id {
    /// One that is none of a real entry.
    pub(super) fn any() -> Self {
        Self([0; 32])
    }
}

const SEALING: u8 = 1;
const OPENING: u8 = 2;
/// The one suite that is written and read.
const SUITE: [u8; 2] = [0x04, 0x78];

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::directory::Directory;
    use crate::message::EncryptionContext;

    /// All that an entry is: whose key in which state, what is wrapped, and the context.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Parts {
        tenant: String,
        key: String,
        generation: u64,
        pairs: Vec<(String, String)>,
        wraps: Vec<(String, String, Vec<u8>)>,
    }

    /// Few parts that run into each other in any way: what is equal and what only looks so is
    /// equally common.
    #[test]
    fn ids_are_equal_exactly_when_all_parts_are() {
        let keys = keys();
        let mut dice = Dice(1);
        let (mut ids, mut parts) = (HashMap::new(), HashMap::new());
        let mut again = 0;
        for _ in 0..1_000_000 {
            let key = dice.pick(&keys);
            let text = |dice: &mut Dice| dice.pick(&TEXTS).repeat(dice.below(3));
            let mut pairs = Vec::new();
            for _ in 0..dice.below(3) {
                pairs.push((text(&mut dice) + "n", text(&mut dice) + "v"));
            }
            // The caller's order, whatever it is, is not the context's.
            let Ok(context) = EncryptionContext::new(pairs.clone()) else {
                continue;
            };
            let wraps: Vec<_> = (0..dice.below(4).min(2))
                .map(|_| EncryptedDataKey {
                    provider_id: text(&mut dice),
                    provider_info: text(&mut dice),
                    ciphertext: text(&mut dice).into_bytes(),
                })
                .collect();
            let id = Id::opening(key, context.serialized(), &wraps)
                .unwrap_or_else(|| Id::sealing(key, context.serialized()));
            pairs.sort();
            let these = Parts {
                tenant: key.name().tenant.to_string(),
                key: key.name().key.to_string(),
                generation: key.generation(),
                pairs,
                wraps: wraps
                    .into_iter()
                    .map(|it| (it.provider_id, it.provider_info, it.ciphertext))
                    .collect(),
            };
            again += usize::from(ids.contains_key(&these));
            assert!(*ids.entry(these.clone()).or_insert(id) == id, "{these:?}");
            let known = parts.entry(id).or_insert_with(|| these.clone());
            assert_eq!(*known, these, "one id for two entries");
        }
        assert!(again > 100_000 && ids.len() > 100_000, "both are tried");
    }

    /// Keys of tenants whose names begin and end like each other, in two states each.
    fn keys() -> Vec<Arc<Key>> {
        let mut text = String::new();
        for tenant in NAMES {
            text += &format!("[[tenant]]\nid = \"{tenant}\"\n");
            for key in NAMES {
                text += &format!("[[tenant.key]]\nid = \"{key}\"\nkms = \"local:one\"\n");
            }
        }
        let read = |text: &str| Directory::parse(text, Path::new("tenants.toml")).expect("tenants");
        let first = read(&text);
        let second = read(&text.replace("local:one", "local:two")).succeed(&first);
        let keys = [&first, &second].map(|directory| {
            let ids = directory.tenants().map(|tenant| tenant.id());
            let keys = ids.flat_map(|id| directory.keys(id)).cloned();
            keys.collect::<Vec<_>>()
        });
        keys.concat()
    }

    /// SplitMix64: the same million each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let mixed = usize::try_from(mixed >> 32).expect("32 bits");
            mixed % limit
        }

        fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
            &among[self.below(among.len())]
        }
    }

    const NAMES: [&str; 3] = ["a", "aa", "a-a"];
    const TEXTS: [&str; 6] = ["", "a", "/", "\0", "é", "e\u{301}"];
}

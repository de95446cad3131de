//! HKDF-SHA-512 of eight salts at once: a salt in each lane of a vector.
//!
//! Written as loops over lanes, which the compiler turns into vectors where the processor has some
//! of eight words; elsewhere one hash after another is faster, and [`is_fast`] says so.

#![expect(
    clippy::indexing_slicing,
    reason = "lanes, rounds and words are counted by the lengths of their arrays"
)]

use std::array;

use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use zeroize::Zeroizing;

use crate::crypto::Secret;

use super::SALT;

/// How many are derived at once.
pub(super) const LANES: usize = 8;

/// Whether this processor has vectors of eight words (AVX-512).
#[multiversion(targets("x86_64+avx512f"))]
pub(super) fn is_fast() -> bool {
    target_cfg_f!(target_feature = "avx512f")
}

/// For each salt: `HKDF-Expand(HKDF-Extract(salt, ikm), info, 32)` of each `info`, which must have
/// at most 110 bytes (RFC 5869, section 2).
pub(super) fn derive<const I: usize>(
    salts: &[[u8; SALT]; LANES],
    ikm: &Secret<32>,
    infos: &[&[u8]; I],
) -> [[Secret<32>; I]; LANES] {
    let prk = Hmac::new(&Block::of_salts(salts)).tag(&[ikm.expose()]);
    let expander = Hmac::new(&Block::of_state(&prk));
    // Of HKDF-Expand's blocks the first is enough: T(1) = HMAC(PRK, info ‖ 01).
    let keys = infos.map(|info| expander.tag(&[info, &[1]]));
    array::from_fn(|lane| array::from_fn(|info| keys[info].lane(lane)))
}

/// HMAC-SHA-512 under a key of at most a block in each lane (RFC 2104, section 2).
struct Hmac {
    inner: State,
    outer: State,
}

impl Hmac {
    fn new(key: &Block) -> Self {
        let padded = |pad: u8| {
            let mut state = State::first();
            let pad = u64::from_ne_bytes([pad; 8]);
            state.take(&Block(key.0.map(|word| word.map(|word| word ^ pad))));
            state
        };
        Self {
            inner: padded(0x36),
            outer: padded(0x5c),
        }
    }

    /// The tags of one text, given in parts of at most 111 bytes together.
    fn tag(&self, text: &[&[u8]]) -> State {
        let mut digest = State(self.inner.0);
        digest.take(&Block::of_text(text));
        let mut tag = State(self.outer.0);
        tag.take(&Block::of_state(&digest).ended(8, 64));
        tag
    }
}

/// A word in each lane.
type Word = [u64; LANES];

/// A SHA-512 hash per lane, under way (FIPS 180-4, section 6.4).
struct State([Word; 8]);

impl State {
    fn first() -> Self {
        Self(INITIAL.map(|word| [word; LANES]))
    }

    fn take(&mut self, block: &Block) {
        compress(&mut self.0, &block.0);
    }

    /// The first 32 bytes of the hash in `lane`.
    fn lane(&self, lane: usize) -> Secret<32> {
        Secret::filled(|cell| {
            for (bytes, word) in cell.as_chunks_mut().0.iter_mut().zip(&self.0) {
                *bytes = word[lane].to_be_bytes();
            }
        })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// A block of input per lane, zeros behind what it was made of.
struct Block([Word; 16]);

impl Block {
    fn of_salts(salts: &[[u8; SALT]; LANES]) -> Self {
        let mut words = [[0; LANES]; 16];
        for (lane, salt) in salts.iter().enumerate() {
            for (word, bytes) in words.iter_mut().zip(salt.as_chunks().0) {
                word[lane] = u64::from_be_bytes(*bytes);
            }
        }
        Self(words)
    }

    fn of_state(state: &State) -> Self {
        let mut words = [[0; LANES]; 16];
        words[..8].copy_from_slice(&state.0);
        Self(words)
    }

    /// The last block of a message whose first is one of HMAC's: the same `text` in every lane.
    fn of_text(text: &[&[u8]]) -> Self {
        let mut block = Zeroizing::new([0; BLOCK]);
        let mut rest = block.as_mut_slice();
        for part in text {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        let length = BLOCK - rest.len();
        rest[0] = 0x80;
        let words = array::from_fn(|word| [u64::from_be_bytes(block.as_chunks().0[word]); LANES]);
        Self(words).counted(length)
    }

    /// With the end of a message: a one bit behind `words` words, and the count of `length` bytes
    /// and those of HMAC's block.
    fn ended(mut self, words: usize, length: usize) -> Self {
        self.0[words] = [1 << 63; LANES];
        self.counted(length)
    }

    fn counted(mut self, length: usize) -> Self {
        let bits = u64::try_from((BLOCK + length) * 8).expect("some hundred");
        self.0[15] = [bits; LANES];
        self
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// One block into one state, in every lane (FIPS 180-4, section 6.4.2). The sixteen words of the
/// schedule are a ring.
#[multiversion(targets("x86_64+avx512f"))]
fn compress(state: &mut [Word; 8], block: &[Word; 16]) {
    let mut schedule = *block;
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (turn, constants) in K.as_chunks::<16>().0.iter().enumerate() {
        for (t, k) in constants.iter().enumerate() {
            if turn > 0 {
                let [w1, w9, w14] = [1, 9, 14].map(|behind| schedule[(t + behind) % 16]);
                let w = &mut schedule[t];
                *w = array::from_fn(|l| {
                    let s0 = w1[l].rotate_right(1) ^ w1[l].rotate_right(8) ^ (w1[l] >> 7);
                    let s1 = w14[l].rotate_right(19) ^ w14[l].rotate_right(61) ^ (w14[l] >> 6);
                    sum([w[l], s0, w9[l], s1])
                });
            }
            let w = &schedule[t];
            let t1: Word = array::from_fn(|l| {
                let s1 = e[l].rotate_right(14) ^ e[l].rotate_right(18) ^ e[l].rotate_right(41);
                let ch = (e[l] & f[l]) ^ (!e[l] & g[l]);
                sum([h[l], s1, ch, *k, w[l]])
            });
            let t2: Word = array::from_fn(|l| {
                let s0 = a[l].rotate_right(28) ^ a[l].rotate_right(34) ^ a[l].rotate_right(39);
                let maj = (a[l] & b[l]) ^ (a[l] & c[l]) ^ (b[l] & c[l]);
                sum([s0, maj])
            });
            h = g;
            g = f;
            f = e;
            e = array::from_fn(|l| sum([d[l], t1[l]]));
            d = c;
            c = b;
            b = a;
            a = array::from_fn(|l| sum([t1[l], t2[l]]));
        }
    }
    for (word, change) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = array::from_fn(|l| sum([word[l], change[l]]));
    }
    wipe(&mut schedule);
}

/// Modulo 2^64.
#[inline(always)]
fn sum<const N: usize>(terms: [u64; N]) -> u64 {
    terms.into_iter().fold(0, u64::wrapping_add)
}

/// In whole vectors, where `zeroize` writes word by word.
#[inline(always)]
fn wipe<const N: usize>(words: &mut [Word; N]) {
    *words = [[0; LANES]; N];
    // Nobody reads the zeros, so the compiler would leave them out. This does, for all it knows.
    zeroize::optimization_barrier(words);
}

/// Bytes of a block.
const BLOCK: usize = 128;

/// The first state (FIPS 180-4, section 5.3.5).
#[rustfmt::skip]
const INITIAL: [u64; 8] = [
    0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1, 0x9b05_688c_2b3e_6c1f, 0x1f83_d9ab_fb41_bd6b, 0x5be0_cd19_137e_2179,
];
/// The constants of the rounds (FIPS 180-4, section 4.2.3).
#[rustfmt::skip]
const K: [u64; 80] = [
    0x428a_2f98_d728_ae22, 0x7137_4491_23ef_65cd, 0xb5c0_fbcf_ec4d_3b2f, 0xe9b5_dba5_8189_dbbc,
    0x3956_c25b_f348_b538, 0x59f1_11f1_b605_d019, 0x923f_82a4_af19_4f9b, 0xab1c_5ed5_da6d_8118,
    0xd807_aa98_a303_0242, 0x1283_5b01_4570_6fbe, 0x2431_85be_4ee4_b28c, 0x550c_7dc3_d5ff_b4e2,
    0x72be_5d74_f27b_896f, 0x80de_b1fe_3b16_96b1, 0x9bdc_06a7_25c7_1235, 0xc19b_f174_cf69_2694,
    0xe49b_69c1_9ef1_4ad2, 0xefbe_4786_384f_25e3, 0x0fc1_9dc6_8b8c_d5b5, 0x240c_a1cc_77ac_9c65,
    0x2de9_2c6f_592b_0275, 0x4a74_84aa_6ea6_e483, 0x5cb0_a9dc_bd41_fbd4, 0x76f9_88da_8311_53b5,
    0x983e_5152_ee66_dfab, 0xa831_c66d_2db4_3210, 0xb003_27c8_98fb_213f, 0xbf59_7fc7_beef_0ee4,
    0xc6e0_0bf3_3da8_8fc2, 0xd5a7_9147_930a_a725, 0x06ca_6351_e003_826f, 0x1429_2967_0a0e_6e70,
    0x27b7_0a85_46d2_2ffc, 0x2e1b_2138_5c26_c926, 0x4d2c_6dfc_5ac4_2aed, 0x5338_0d13_9d95_b3df,
    0x650a_7354_8baf_63de, 0x766a_0abb_3c77_b2a8, 0x81c2_c92e_47ed_aee6, 0x9272_2c85_1482_353b,
    0xa2bf_e8a1_4cf1_0364, 0xa81a_664b_bc42_3001, 0xc24b_8b70_d0f8_9791, 0xc76c_51a3_0654_be30,
    0xd192_e819_d6ef_5218, 0xd699_0624_5565_a910, 0xf40e_3585_5771_202a, 0x106a_a070_32bb_d1b8,
    0x19a4_c116_b8d2_d0c8, 0x1e37_6c08_5141_ab53, 0x2748_774c_df8e_eb99, 0x34b0_bcb5_e19b_48a8,
    0x391c_0cb3_c5c9_5a63, 0x4ed8_aa4a_e341_8acb, 0x5b9c_ca4f_7763_e373, 0x682e_6ff3_d6b2_b8a3,
    0x748f_82ee_5def_b2fc, 0x78a5_636f_4317_2f60, 0x84c8_7814_a1f0_ab72, 0x8cc7_0208_1a64_39ec,
    0x90be_fffa_2363_1e28, 0xa450_6ceb_de82_bde9, 0xbef9_a3f7_b2c6_7915, 0xc671_78f2_e372_532b,
    0xca27_3ece_ea26_619c, 0xd186_b8c7_21c0_c207, 0xeada_7dd6_cde0_eb1e, 0xf57d_4f7f_ee6e_d178,
    0x06f0_67aa_7217_6fba, 0x0a63_7dc5_a2c8_98a6, 0x113f_9804_bef9_0dae, 0x1b71_0b35_131c_471b,
    0x28db_77f5_2304_7d84, 0x32ca_ab7b_40c7_2493, 0x3c9e_be0a_15c9_bebc, 0x431d_67c4_9c10_0d4c,
    0x4cc5_d4be_cb3e_42b6, 0x597f_299c_fc65_7e2a, 0x5fcb_6fab_3ad6_faec, 0x6c44_198c_4a47_5817,
];

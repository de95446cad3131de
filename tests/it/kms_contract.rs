//! What every [`Kms`] must do, whatever stands behind it.

use crate::harness::demand;
use async_trait::async_trait;
use keybroker::crypto::Secret;
use keybroker::kms::DATA_KEY;
use keybroker::kms::DataKey;
use keybroker::kms::Error;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::KmsOperation;

/// Keys of the service under test, in the states that the contract speaks of.
#[async_trait]
pub trait Fixture: Sync {
    /// Two keys that may be used.
    fn enabled(&self) -> [KeyRef; 2];
    fn disabled(&self) -> KeyRef;
    fn pending_deletion(&self) -> KeyRef;
    fn absent(&self) -> KeyRef;
    /// Gives `key` new material, as the service itself would.
    async fn rotate(&self, key: &KeyRef);
}

/// Holds `kms` to the contract.
pub async fn contract(kms: &dyn Kms, fixture: &dyn Fixture) {
    data_keys_open_again_and_differ(kms, fixture).await;
    a_data_key_of_one_key_is_wrapped_by_another(kms, fixture).await;
    context_is_bound_exactly(kms, fixture).await;
    another_key_does_not_open(kms, fixture).await;
    damage_is_found(kms, fixture).await;
    rotation_keeps_old_data_keys(kms, fixture).await;
    key_states_are_told_apart(kms, fixture).await;
}

async fn data_keys_open_again_and_differ(kms: &dyn Kms, fixture: &dyn Fixture) {
    for key in fixture.enabled() {
        for pairs in [&[][..], &[("a", "b")], &[("a", "b"), ("ä", "ö")]] {
            let context = context(pairs);
            let one = generate(kms, &key, &context).await;
            let two = generate(kms, &key, &context).await;
            assert!(!one.plaintext.matches(two.plaintext.expose()));
            assert_ne!(one.wrapped, two.wrapped);
            for made in [one, two] {
                let opened = kms.decrypt(&key, &made.wrapped, &context, &demand()).await;
                assert!(
                    opened
                        .ok()
                        .unwrap()
                        .plaintext
                        .matches(made.plaintext.expose())
                );
                assert!((1..=6144).contains(&made.wrapped.ciphertext.len()));
                assert!(!contains(&made.wrapped.ciphertext, made.plaintext.expose()));
            }
        }
        assert_eq!(kms.describe_key(&key).await, Ok(()));
    }
}

async fn a_data_key_of_one_key_is_wrapped_by_another(kms: &dyn Kms, fixture: &dyn Fixture) {
    let [one, other] = fixture.enabled();
    let (right, wrong) = (context(&[("a", "b")]), context(&[("a", "c")]));
    let made = generate(kms, &one, &right).await;
    let wraps = [
        wrap(kms, &other, &made.plaintext, &right).await,
        wrap(kms, &other, &made.plaintext, &right).await,
    ];
    assert_ne!(wraps[0], wraps[1]);
    for wrapped in wraps {
        assert!(other.claims(&wrapped) && !one.claims(&wrapped));
        assert!((1..=6144).contains(&wrapped.ciphertext.len()));
        assert!(!contains(&wrapped.ciphertext, made.plaintext.expose()));
        let opened = kms.decrypt(&other, &wrapped, &right, &demand()).await;
        let opened = opened.ok().unwrap().plaintext;
        assert!(opened.matches(made.plaintext.expose()));
        let refused = refusal(kms, &other, &wrapped, &wrong).await;
        assert_eq!(refused, Error::InvalidCiphertext);
        let refused = refusal(kms, &one, &wrapped, &right).await;
        assert_eq!(refused, Error::IncorrectKey);
    }
    for operation in [KmsOperation::Encrypt, KmsOperation::GenerateDataKey] {
        let dry = kms.dry_run(operation, &one, &right, &demand()).await;
        assert_eq!(dry, Ok(()), "{operation:?}");
    }
}

async fn context_is_bound_exactly(kms: &dyn Kms, fixture: &dyn Fixture) {
    let [key, _] = fixture.enabled();
    let cases: [(Pairs<'_>, &[Pairs<'_>]); 4] = [
        (&[], &[&[("a", "b")]]),
        (
            &[("a", "b"), ("c", "d")],
            &[
                &[],
                &[("a", "b")],
                &[("c", "d")],
                &[("a", "b"), ("c", "d"), ("e", "f")],
                &[("a", "B"), ("c", "d")],
                &[("A", "b"), ("c", "d")],
                &[("a", "d"), ("c", "b")],
                &[("b", "a"), ("d", "c")],
            ],
        ),
        (&[("a", "bc")], &[&[("ab", "c")], &[("a", "b"), ("c", "d")]]),
        (
            &[("x", "1"), ("y", "2")],
            &[&[("x", "1y2")], &[("x1", "y2")]],
        ),
    ];
    for (right, wrongs) in cases {
        let made = generate(kms, &key, &context(right)).await;
        for wrong in wrongs {
            let refused = refusal(kms, &key, &made.wrapped, &context(wrong)).await;
            assert_eq!(refused, Error::InvalidCiphertext, "{right:?} as {wrong:?}");
        }
    }
    let sorted = context(&[("a", "b"), ("c", "d")]);
    let made = generate(kms, &key, &sorted).await;
    let reversed = context(&[("c", "d"), ("a", "b")]);
    assert!(
        kms.decrypt(&key, &made.wrapped, &reversed, &demand())
            .await
            .is_ok()
    );
}

async fn another_key_does_not_open(kms: &dyn Kms, fixture: &dyn Fixture) {
    let [ours, theirs] = fixture.enabled();
    let context = context(&[("a", "b")]);
    let made = generate(kms, &ours, &context).await;
    assert_eq!(made.wrapped.provider_id, ours.provider_id());
    assert!(ours.claims(&made.wrapped) && !theirs.claims(&made.wrapped));
    let refused = refusal(kms, &theirs, &made.wrapped, &context).await;
    assert_eq!(refused, Error::IncorrectKey);
}

async fn damage_is_found(kms: &dyn Kms, fixture: &dyn Fixture) {
    let [key, _] = fixture.enabled();
    let context = context(&[("a", "b")]);
    let made = generate(kms, &key, &context).await;
    let whole = &made.wrapped.ciphertext;
    let flipped = (0..whole.len()).map(|place| {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        bytes
    });
    // A service may read in a damaged blob that another key made it.
    let found = [Error::InvalidCiphertext, Error::IncorrectKey];
    let shorter = whole[..whole.len() - 1].to_vec();
    let longer = [&whole[..], b"\0"].concat();
    for ciphertext in flipped.chain([shorter, longer, b"\0".to_vec()]) {
        let wrapped = EncryptedDataKey {
            ciphertext,
            ..made.wrapped.clone()
        };
        let refused = refusal(kms, &key, &wrapped, &context).await;
        assert!(found.contains(&refused), "{refused}");
    }
}

async fn rotation_keeps_old_data_keys(kms: &dyn Kms, fixture: &dyn Fixture) {
    let [key, _] = fixture.enabled();
    let context = context(&[("a", "b")]);
    let mut all = vec![generate(kms, &key, &context).await];
    for _ in 0..2 {
        fixture.rotate(&key).await;
        all.push(generate(kms, &key, &context).await);
    }
    for made in all {
        assert!(key.claims(&made.wrapped));
        let opened = kms.decrypt(&key, &made.wrapped, &context, &demand()).await;
        assert!(
            opened
                .ok()
                .unwrap()
                .plaintext
                .matches(made.plaintext.expose())
        );
    }
}

async fn key_states_are_told_apart(kms: &dyn Kms, fixture: &dyn Fixture) {
    let context = context(&[("a", "b")]);
    let [usable, _] = fixture.enabled();
    let made = generate(kms, &usable, &context).await;
    let disabled: fn(&Error) -> bool = |e| matches!(e, Error::Disabled);
    let pending: fn(&Error) -> bool = |e| matches!(e, Error::PendingDeletion(_));
    let absent: fn(&Error) -> bool = |e| matches!(e, Error::NotFound(_));
    for (key, expected) in [
        (fixture.disabled(), disabled),
        (fixture.pending_deletion(), pending),
        (fixture.absent(), absent),
    ] {
        for error in [
            kms.generate_data_key(&key, &context, &demand())
                .await
                .err()
                .unwrap(),
            kms.describe_key(&key).await.unwrap_err(),
            kms.encrypt(&key, &made.plaintext, &context, &demand())
                .await
                .err()
                .unwrap(),
        ] {
            assert!(expected(&error), "{key}: {error}");
        }
        // Which of the two is looked at first, the state or the wrapped key, is the service's own.
        let error = refusal(kms, &key, &made.wrapped, &context).await;
        assert!(
            expected(&error) || error == Error::IncorrectKey,
            "{key}: {error}"
        );
    }
}

type Pairs<'a> = &'a [(&'a str, &'a str)];

async fn generate(kms: &dyn Kms, key: &KeyRef, context: &EncryptionContext) -> DataKey {
    match kms.generate_data_key(key, context, &demand()).await {
        Ok(made) => made,
        Err(error) => panic!("{key}: {error}"),
    }
}

async fn wrap(
    kms: &dyn Kms,
    key: &KeyRef,
    plaintext: &Secret<DATA_KEY>,
    context: &EncryptionContext,
) -> EncryptedDataKey {
    match kms.encrypt(key, plaintext, context, &demand()).await {
        Ok(made) => made.wrapped,
        Err(error) => panic!("{key}: {error}"),
    }
}

async fn refusal(
    kms: &dyn Kms,
    key: &KeyRef,
    wrapped: &EncryptedDataKey,
    context: &EncryptionContext,
) -> Error {
    match kms.decrypt(key, wrapped, context, &demand()).await {
        Ok(_) => panic!("{key} opened it"),
        Err(error) => error,
    }
}

fn context(pairs: Pairs<'_>) -> EncryptionContext {
    EncryptionContext::new(pairs.iter().copied()).unwrap()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

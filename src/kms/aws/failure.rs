//! What the SDK's errors mean to us, in words that repeat nothing of the request.

use std::cmp::Reverse;
use std::error::Error as StdError;
use std::iter;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::error::SdkError;

use crate::kms::Error;
use crate::kms::aws::codes::meaning;
use crate::kms::aws::codes::sentence;
use crate::message::EncryptionContext;
use crate::message::context::is_reserved;

/// What a failed call with `context` means to us.
pub(super) fn failure<E>(error: SdkError<E>, context: &EncryptionContext) -> Error
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match &error {
        SdkError::ConstructionFailure(_) => Error::Invalid(causes(&error)),
        SdkError::ServiceError(service) => {
            let answer = service.err();
            match answer.code() {
                Some(code) => {
                    let message = without(answer.message().unwrap_or_default(), context);
                    meaning(code, &message)
                }
                // Without a code it was not KMS who refused: a proxy or a load balancer.
                None if service.raw().status().is_success() => {
                    Error::Invalid("an answer that cannot be read".to_owned())
                }
                None => Error::Unavailable("an error that names no code".to_owned()),
            }
        }
        // Timeouts, failures to connect, torn answers; `SdkError` keeps the right to grow.
        _ => match sources(&error).find(|cause| cause.is::<CredentialsError>()) {
            Some(cause) => Error::Credentials(causes(cause)),
            None => Error::Unavailable(causes(&error)),
        },
    }
}

/// A sentence of KMS's without the values of `context`, should it repeat them. Our own pair, the
/// tenant's id, stays: it is no secret, and may be a part of many a role's name.
fn without(message: &str, context: &EncryptionContext) -> String {
    let foreign = context.pairs().filter(|(name, _)| !is_reserved(name));
    let mut values: Vec<&str> = foreign.map(|(_, value)| value).collect();
    // One may be a part of another.
    values.sort_by_key(|value| Reverse(value.len()));
    let cut = |text: String, value: &&str| text.replace(value, "…");
    values.iter().fold(message.to_owned(), cut)
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<String> = sources(error).map(ToString::to_string).collect();
    sentence(&texts.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_that_repeats_the_context_loses_its_values() {
        let pairs = [
            ("ward", "seven"),
            ("bed", "seventy"),
            ("keybroker:tenant", "kms"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let context = EncryptionContext::new(pairs).expect("a context");
        let said = without("no kms:Decrypt of {ward: seven, bed: seventy}", &context);
        assert_eq!(said, "no kms:Decrypt of {ward: …, bed: …}");
    }
}

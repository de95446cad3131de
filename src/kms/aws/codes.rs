//! What the error codes of AWS KMS mean to us.

use crate::kms::Error;

/// What KMS means by `code`: the one table. The HTTP status is no guide, since KMS sends 400 where
/// its own model says 404, 409 or 503.
pub(super) fn meaning(code: &str, message: &str) -> Error {
    let said = || sentence(message);
    match code {
        "AccessDeniedException" | "InvalidGrantTokenException" | "NotAuthorized" => {
            Error::AccessDenied(said().into())
        }
        // Some quote the request that they would have signed, the session token included.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "OptInRequired"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => Error::Credentials(code.to_owned()),
        "DisabledException" => Error::Disabled,
        "IncorrectKeyException" => Error::IncorrectKey,
        "InvalidCiphertextException" => Error::InvalidCiphertext,
        "KMSInvalidStateException" => Error::PendingDeletion(said()),
        "NotFoundException" | "InvalidKeyUsageException" | "UnsupportedOperationException" => {
            Error::NotFound(said())
        }
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" => Error::Throttled,
        "DependencyTimeoutException"
        | "InternalFailure"
        | "KMSInternalException"
        | "KeyUnavailableException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => Error::Unavailable(format!("{code}: {}", said())),
        // Quotes the value it refuses, which can be one of the encryption context.
        "ValidationException" => Error::Invalid(code.to_owned()),
        // `LimitExceededException` among them: a quota on resources, which no waiting helps.
        _ => Error::Invalid(format!("{}: {}", sentence(code), said())),
    }
}

/// A foreign sentence, shortened and without what could forge a line of a log.
pub(super) fn sentence(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_SENTENCE).map(plain).collect()
}

/// Longest foreign sentence, in characters.
const MAX_SENTENCE: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn every_code_has_its_meaning() {
        let coded = |code: &str| format!("{code}: why");
        for (code, expected) in [
            (
                "AccessDeniedException",
                Error::AccessDenied(said("why").into()),
            ),
            (
                "DependencyTimeoutException",
                Error::Unavailable(coded("DependencyTimeoutException")),
            ),
            ("DisabledException", Error::Disabled),
            (
                "ExpiredTokenException",
                Error::Credentials(said("ExpiredTokenException")),
            ),
            ("IncorrectKeyException", Error::IncorrectKey),
            ("InvalidCiphertextException", Error::InvalidCiphertext),
            (
                "InvalidGrantTokenException",
                Error::AccessDenied(said("why").into()),
            ),
            ("InvalidKeyUsageException", Error::NotFound(said("why"))),
            (
                "InvalidSignatureException",
                Error::Credentials(said("InvalidSignatureException")),
            ),
            (
                "KMSInternalException",
                Error::Unavailable(coded("KMSInternalException")),
            ),
            (
                "KMSInvalidStateException",
                Error::PendingDeletion(said("why")),
            ),
            (
                "KeyUnavailableException",
                Error::Unavailable(coded("KeyUnavailableException")),
            ),
            (
                "LimitExceededException",
                Error::Invalid(coded("LimitExceededException")),
            ),
            ("NotFoundException", Error::NotFound(said("why"))),
            ("ThrottlingException", Error::Throttled),
            (
                "UnrecognizedClientException",
                Error::Credentials(said("UnrecognizedClientException")),
            ),
            (
                "UnsupportedOperationException",
                Error::NotFound(said("why")),
            ),
            (
                "ValidationException",
                Error::Invalid(said("ValidationException")),
            ),
            ("ANewException", Error::Invalid(coded("ANewException"))),
        ] {
            assert_eq!(meaning(code, "why"), expected, "{code}");
        }
    }

    #[test]
    fn a_refused_value_is_not_repeated() {
        let Error::Invalid(text) = meaning("ValidationException", "Value 'ward 7' at 'context'")
        else {
            panic!("another meaning");
        };
        assert!(!text.contains("ward 7"));
        let Error::Credentials(text) = meaning("InvalidSignatureException", "security-token:7")
        else {
            panic!("another meaning");
        };
        assert!(!text.contains("token:7"));
    }

    #[test]
    fn foreign_sentences_are_short_and_of_one_line() {
        assert_eq!(sentence("no\nsuch\tkey\u{1b}[0m"), "no such key [0m");
        assert_eq!(sentence(&"ä".repeat(301)).chars().count(), 300);
    }
}

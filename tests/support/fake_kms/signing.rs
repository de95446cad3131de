//! The operations of keys that sign, with real signatures.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::PublicKeyData as _;
use rcgen::SigningKey as _;
use serde_json::json;

use super::keys::arn;
use super::request::Answer;
use super::request::Request;
use super::request::invalid;
use super::service::Service;
use super::service::blob;
use super::service::done_dry;

impl Service {
    pub(super) fn get_public_key(&self, request: &Request) -> Answer {
        let id = self.keys.signing(request)?;
        let pair = self.keys.known(&request.region, &id).pair.as_ref();
        let der = pair.expect("a key that signs").subject_public_key_info();
        done_dry(request)?;
        Ok(json!({
            "KeyId": arn(&request.region, &id),
            "KeySpec": "ECC_NIST_P256",
            "KeyUsage": "SIGN_VERIFY",
            "PublicKey": BASE64_STANDARD.encode(der),
            "SigningAlgorithms": [ALGORITHM],
        }))
    }

    pub(super) fn sign(&self, request: &Request) -> Answer {
        let message = blob(request, "Message", 4096)?;
        if request.body["MessageType"] != "RAW" || request.body["SigningAlgorithm"] != ALGORITHM {
            return invalid("RAW messages and ECDSA_SHA_256 alone");
        }
        let id = self.keys.signing(request)?;
        done_dry(request)?;
        let pair = self.keys.known(&request.region, &id).pair.as_ref();
        let signature = pair.expect("a key that signs").sign(&message);
        Ok(json!({
            "KeyId": arn(&request.region, &id),
            "Signature": BASE64_STANDARD.encode(signature.expect("a signature")),
            "SigningAlgorithm": ALGORITHM,
        }))
    }
}

const ALGORITHM: &str = "ECDSA_SHA_256";

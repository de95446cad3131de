//! Shows a running playground: a round trip as a client makes it, its price, a refusal, and what to
//! try next.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;

use crate::broker::Binding;
use crate::broker::Broker;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::dev::folder::ACME;
use crate::cli::dev::folder::Folder;
use crate::cli::dev::folder::GLOBEX;
use crate::cli::dev::folder::Playmate;
use crate::cli::say;
use crate::grpc::client::Address;
use crate::grpc::client::Class;
use crate::grpc::client::Client;
use crate::grpc::client::Error;
use crate::grpc::client::Place;
use crate::identity::DEV_TRUST_DOMAIN;
use crate::message::Message;

/// Encrypts, decrypts, counts and is refused, over TLS like anybody else; and says so.
pub(super) async fn take(
    folder: &Folder,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    broker: &Broker,
) -> Result<(), Failure> {
    let place = Place {
        host: address.ip().to_string(),
        port: address.port(),
    };
    let address = Address::Tls(place.clone());
    let acme = connect(folder, &address, ACME).await?;
    let globex = connect(folder, &address, GLOBEX).await?;
    say(format_args!(
        "serving on {address} from {}\n",
        folder.file("").display()
    ));

    let message = round_trip(&acme).await?;
    let before = broker.data_keys().stats();
    for _ in 1..ENCRYPTS {
        acme.encrypt(binding(), PLAINTEXT.into())
            .await
            .map_err(|error| Failure::broker(&error))?;
    }
    let after = broker.data_keys().stats();
    let calls = after.kms_calls;
    let saved = (after.hits + after.coalesced) - (before.hits + before.coalesced);
    say(format_args!(
        "price       {ENCRYPTS} Encrypts: {}, {saved} saved by the data-key cache; the Decrypt \
         needed none",
        counted(calls),
    ));
    if calls != 1 || before.kms_calls != 1 {
        let sentence = format!("the cache should have needed 1 KMS call, not {calls}");
        return Err(Failure::new(Exit::Software, sentence));
    }
    refusal(&globex, message).await?;
    next(folder, &address, &place, admin);
    Ok(())
}

/// One message there and back; returns it.
async fn round_trip(acme: &Client) -> Result<Bytes, Failure> {
    let encrypted = acme
        .encrypt(binding(), PLAINTEXT.into())
        .await
        .map_err(|error| Failure::broker(&error))?;
    let parsed = Message::parse(&encrypted.ciphertext)
        .map_err(|flaw| Failure::new(Exit::Software, flaw.to_string()))?;
    say(format_args!(
        "principal   spiffe://{DEV_TRUST_DOMAIN}/{}\n\
         tenant      {}\n\
         key         {}\n\
         context     bound to key and message, not secret:",
        ACME.path(),
        ACME.tenant,
        encrypted.version,
    ));
    for (name, value) in parsed.context().pairs() {
        let origin = match name {
            "service" => "captured from the SPIFFE id",
            "plan" => "fixed for the tenant",
            "region" => "the caller's own",
            _ => "the broker's",
        };
        say(format_args!("            {name} = {value}  ({origin})"));
    }
    let decrypted = acme
        .decrypt(
            Binding {
                name: String::new(),
                ..binding()
            },
            encrypted.ciphertext.clone(),
        )
        .await
        .map_err(|error| Failure::broker(&error))?;
    if *decrypted.plaintext != PLAINTEXT {
        return Err(Failure::new(
            Exit::Software,
            "Decrypt returned other bytes than Encrypt was given",
        ));
    }
    say(format_args!(
        "round trip  Encrypt {} bytes into {}, Decrypt {} into {}: the same bytes",
        PLAINTEXT.len(),
        encrypted.ciphertext.len(),
        encrypted.ciphertext.len(),
        decrypted.plaintext.len(),
    ));
    Ok(encrypted.ciphertext)
}

/// The other tenant must not get at the message.
async fn refusal(globex: &Client, message: Bytes) -> Result<(), Failure> {
    match globex.decrypt(binding(), message).await {
        Err(Error::Refused {
            class: Class::Denied,
            reason,
            message,
        }) => {
            say(format_args!(
                "isolation   {} asks for the same message: {reason}, {message}",
                GLOBEX.tenant
            ));
            Ok(())
        }
        Ok(_) => Err(Failure::new(
            Exit::Software,
            "another tenant decrypted the message: do not use this build",
        )),
        Err(error) => Err(Failure::broker(&error)),
    }
}

/// What to try, ready to be pasted.
fn next(folder: &Folder, address: &Address, place: &Place, admin: Option<SocketAddr>) {
    let path = |name: &str| quoted(&folder.file(name));
    let (ca, cert, key) = (path("ca.pem"), path("acme.pem"), path("acme.key"));
    let target = format!("localhost:{}", place.port);
    say(format_args!(
        "\nnext, in another terminal:\n\n\
         export KEYBROKER_ADDR={address}\n\
         export KEYBROKER_CA={ca}\n\
         export KEYBROKER_CERT={cert}\n\
         export KEYBROKER_PRIVATE_KEY={key}\n\
         echo 'attack at dawn' | keybroker encrypt --key keys/orders --context region=eu > message\n\
         keybroker decrypt --context region=eu < message\n\
         keybroker keys list\n\n\
         grpcurl -cacert {ca} -cert {cert} -key {key} \\\n  \
         -d '{{\"name\": \"keys/orders\", \"plaintext\": \"aGVsbG8=\"}}' \\\n  \
         {target} keybroker.v1.KeyBrokerService/Encrypt\n\n\
         pip install grpcio grpcio-tools && python3 {} {target}\n\n\
         every call has its record in {}",
        path("client.py"),
        path("audit.jsonl"),
    ));
    if let Some(admin) = admin {
        say(format_args!("what happens now stands at http://{admin}/"));
    }
}

async fn connect(folder: &Folder, address: &Address, mate: Playmate) -> Result<Client, Failure> {
    Client::connect(address, Some(&folder.credentials(mate)))
        .await
        .map_err(|error| Failure::broker(&error))
}

fn binding() -> Binding {
    Binding {
        name: ACME.key_name(),
        context: vec![("region".into(), "eu".into())],
        associated_data: Bytes::new(),
        tokens: Vec::new(),
    }
}

fn counted(calls: u64) -> String {
    match calls {
        1 => "1 KMS call".into(),
        many => format!("{many} KMS calls"),
    }
}

/// A path that a shell reads as one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

const PLAINTEXT: &[u8] = b"attack at dawn";
/// Enough to show that the price does not grow with them.
const ENCRYPTS: u32 = 1000;

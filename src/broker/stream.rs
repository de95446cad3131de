//! The operations that go on for long: a message of any length, in constant memory, under a right
//! that is looked at again as long as it takes.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::broker::Binding;
use crate::broker::Broker;
use crate::broker::Call;
use crate::broker::Pairs;
use crate::broker::binding::refusal;
use crate::broker::no_randomness;
use crate::broker::opening::Request;
use crate::clock::Instant;
use crate::datakeys;
use crate::datakeys::Patience;
use crate::datakeys::Version;
use crate::error::Error;
use crate::grants::Backing;
use crate::grants::Book;
use crate::identity::Session;
use crate::message::EncryptedDataKey;
use crate::message::Flaw;
use crate::message::Message;
use crate::message::stream::Head;
use crate::message::stream::MAX_PLAINTEXT;
use crate::message::stream::Progress;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::Denied;
use crate::policy::Direction;
use crate::policy::Permit;
use crate::sync::Mutex;
use crate::sync::lock;

/// A stream that may begin.
pub struct Begun {
    /// The key's full name.
    pub name: KeyName,
    /// The version that wraps its data key.
    pub version: Arc<Version>,
    /// The right to it.
    pub standing: Standing,
    /// What takes its bytes.
    pub flow: Flow,
    /// What comes out of it first: a header, or the plaintext of what came with one.
    pub output: Bytes,
}

/// The right to a stream, to be looked at again while it goes on. Holds no secret.
pub struct Standing {
    permit: Permit,
    own: Pairs,
    tokens: Vec<String>,
    /// What the store has said last, where not all was known here when the stream began.
    asked: Mutex<Option<Arc<Book>>>,
    cut: datakeys::Cut,
    wrapped: Vec<EncryptedDataKey>,
}

impl Standing {
    /// Whether the data key may be used no more: [`Standing::check`] says why.
    pub fn is_cut(&self) -> bool {
        self.cut.is_done()
    }

    /// Until when the data key may be used unless [`Standing::confirm`] says so.
    pub fn until(&self) -> Instant {
        self.cut.hard()
    }

    /// Asks for the data key as a new call would, KMS where the cache does not know; returns until
    /// when it may be used.
    ///
    /// # Errors
    /// What a new call would end in.
    pub async fn confirm(&self, broker: &Broker) -> Result<Instant, Error> {
        let patience = Patience::default();
        let confirmed = broker
            .data_keys
            .confirm(&self.permit, &self.wrapped, &patience);
        confirmed
            .await
            .map_err(|error| Error::of_data_key(error, self.permit.key().owner()))
    }

    /// Has the store asked anew for the grants of `session`, where it was asked when the stream began
    /// and that will not count for much longer: all grants may take longer to be known here. If it
    /// does not answer, what it has said before counts as long as it would.
    pub fn asking(
        self: &Arc<Self>,
        broker: &Arc<Broker>,
        session: &Session,
    ) -> Option<BoxFuture<'static, ()>> {
        let grants = broker.grants();
        let asked = lock(&self.asked).clone()?;
        if grants.is_whole() || !grants.is_old(&asked) {
            return None;
        }
        let caller = session.caller(broker.policy().rules())?;
        let (standing, broker) = (Arc::clone(self), Arc::clone(broker));
        Some(Box::pin(async move {
            let name = standing.permit.key().name();
            if let Ok(book) = broker.grants().ask(name, &caller).await {
                *lock(&standing.asked) = Some(Arc::new(book));
            }
        }))
    }

    /// Looks at the right of `session` anew, under the policy of this moment.
    ///
    /// # Errors
    /// What a new call would end in; [`Error::Withdrawn`] where that would be served, by another
    /// data key.
    pub fn check(&self, broker: &Broker, session: &Session) -> Result<(), Error> {
        let policy = broker.policy();
        let caller = session.caller(policy.rules()).ok_or(Error::Unmapped)?;
        broker.admit(policy.directory(), &caller)?;
        let (action, name) = (self.permit.action(), self.permit.key().name());
        let asked = lock(&self.asked).clone();
        let book = broker.grants().book_beside(asked.as_ref());
        let grants = Backing::new(book, &self.tokens);
        let permit = match action.direction() {
            Direction::Open => {
                let header = self.permit.context();
                policy.authorize_open(&caller, action, Some(name), header, &self.own, grants)
            }
            Direction::Seal => policy.authorize_seal(&caller, action, name, &self.own, grants),
        };
        let permit = permit.map_err(|refused| refusal(refused, action))?;
        broker.check_freshness(permit.key().tenant().max_staleness())?;
        let same = permit.key().generation() == self.permit.key().generation()
            && permit.context() == self.permit.context();
        match same && !self.is_cut() {
            true => Ok(()),
            false => Err(Error::Withdrawn),
        }
    }
}

/// Takes the bytes of a stream and gives what becomes of them. Holds the data key, which whoever
/// holds this must give up when [`Standing::is_cut`].
pub struct Flow {
    work: Work,
    plaintext: u64,
}

enum Work {
    Open(datakeys::Opening),
    Seal(datakeys::Sealing, Bound),
}

/// How much a stream may seal.
struct Bound {
    /// What the caller declared.
    declared: Option<u64>,
    /// What one data key may seal.
    most: u64,
}

impl Flow {
    /// Takes the next bytes, and returns what is certain by now: sealed frames, or verified
    /// plaintext, wiped when dropped.
    ///
    /// # Errors
    /// Those of the RPC: the stream is over then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Bytes, Error> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match &mut self.work {
            Work::Open(opening) => {
                let plaintext = opening.push(bytes)?;
                self.plaintext += u64::try_from(plaintext.len()).unwrap_or(u64::MAX);
                Ok(Bytes::from_owner(plaintext))
            }
            Work::Seal(sealing, bound) => {
                let whole = self.plaintext.saturating_add(length);
                bound.check(whole)?;
                self.plaintext = whole;
                Ok(sealing.push(bytes).into())
            }
        }
    }

    /// Ends the stream, gives up the data key, and returns what comes last.
    ///
    /// # Errors
    /// [`Error::Unverified`] when a message ends before its end.
    pub fn finish(self) -> Result<Bytes, Error> {
        match self.work {
            Work::Open(opening) => opening.finish().map(|()| Bytes::new()).map_err(Error::from),
            Work::Seal(sealing, _) => Ok(sealing.finish().into()),
        }
    }

    /// How many bytes of plaintext were taken or released.
    pub fn plaintext(&self) -> u64 {
        self.plaintext
    }
}

impl Bound {
    fn check(&self, length: u64) -> Result<(), Error> {
        if let Some(declared) = self.declared
            && length > declared
        {
            return Err(Error::Invalid {
                field: "plaintext_length",
                why: format!("the plaintext has more than the {declared} bytes declared"),
            });
        }
        match length > self.most {
            true => Err(Error::PlaintextTooLarge {
                length,
                limit: self.most,
            }),
            false => Ok(()),
        }
    }
}

/// A stream to decrypt until its header is whole.
pub struct Header {
    from: Binding,
    name: Option<KeyName>,
    head: Head,
}

impl Header {
    fn request(&self) -> Request<'_> {
        Request {
            action: Action::Decrypt,
            from: &self.from,
            name: self.name.as_ref(),
        }
    }
}

impl Call<'_> {
    /// Begins to encrypt a plaintext of any length, at most `declared` bytes.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn encrypt_stream(&self, to: Binding, declared: Option<u64>) -> Result<Begun, Error> {
        let permit = self.permit(Action::Encrypt, &to).await?;
        let reserved = self.reserve(&permit, declared).await?;
        let version = Arc::clone(reserved.version());
        let (sealing, header) = reserved
            .begin(&to.associated_data)
            .map_err(|error| no_randomness(&error))?;
        let bound = Bound {
            declared,
            most: permit.key().limits().max_bytes.min(MAX_PLAINTEXT),
        };
        let name = permit.key().name().clone();
        Ok(Begun {
            version,
            standing: Standing {
                cut: sealing.cut(),
                wrapped: sealing.wrapped(),
                permit,
                asked: Mutex::new(self.asked.of(&name).cloned()),
                own: to.context,
                tokens: to.tokens,
            },
            name,
            flow: Flow {
                work: Work::Seal(sealing, bound),
                plaintext: 0,
            },
            output: header.into(),
        })
    }

    /// Begins to decrypt a message of any length: its header is to be given to
    /// [`Call::take_header`].
    ///
    /// # Errors
    /// Those of the RPC that show without the message: a named key is authorized before any of it
    /// is taken.
    pub async fn decrypt_stream(&self, from: Binding) -> Result<Header, Error> {
        let name = self.key_wanted(Action::Decrypt, &from)?;
        self.note_request(name.as_ref(), &from.context);
        let header = Header {
            from,
            name,
            head: Head::default(),
        };
        let ask = || self.denied(header.request());
        match self.knowing(header.name.as_ref(), ask).await {
            // What a condition on the context says, the header decides.
            Ok(()) | Err(Error::Denied(Denied::Condition)) => Ok(header),
            Err(refused) => Err(refused),
        }
    }

    /// Takes the bytes of a message off the front of `chunk`, and begins to open it when they hold
    /// its header.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn take_header(
        &self,
        header: &mut Header,
        chunk: &mut Bytes,
    ) -> Result<Option<Begun>, Error> {
        let mut rest: &[u8] = chunk;
        let progress = header.head.push(&mut rest);
        *chunk = chunk.slice(chunk.len() - rest.len()..);
        match progress {
            Ok(Progress::Begun) => Ok(None),
            Ok(Progress::Whole) => {
                let message = header.head.message()?;
                self.open_stream(header, &message).await.map(Some)
            }
            Err(flaw) => Err(self.flawed(header.request(), flaw).await),
        }
    }

    /// What it means that a message ends before its header does.
    pub async fn without_end(&self, header: &Header) -> Error {
        let flaw = header.head.message().err().unwrap_or(Flaw::Truncated);
        self.flawed(header.request(), flaw).await
    }

    async fn open_stream(&self, header: &Header, message: &Message<'_>) -> Result<Begun, Error> {
        let (permit, opener) = self.opener(header.request(), message).await?;
        let version = Arc::clone(opener.version());
        let from = &header.from;
        let opening = opener.begin(message, &from.associated_data)?;
        let standing = Standing {
            cut: opening.cut(),
            wrapped: message.encrypted_data_keys().to_vec(),
            own: from.context.clone(),
            tokens: from.tokens.clone(),
            asked: Mutex::new(self.asked.of(permit.key().name()).cloned()),
            permit,
        };
        let mut flow = Flow {
            work: Work::Open(opening),
            plaintext: 0,
        };
        let output = flow.push(message.body())?;
        Ok(Begun {
            name: standing.permit.key().name().clone(),
            version,
            standing,
            flow,
            output,
        })
    }
}

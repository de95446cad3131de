//! From what a request says of a message, over the permit, to what opens it: one way for messages
//! that come whole, with others or in a stream.

use crate::broker::Binding;
use crate::broker::Call;
use crate::broker::binding::Fields;
use crate::broker::binding::bound;
use crate::broker::binding::refusal;
use crate::broker::grants::Confirmed;
use crate::datakeys::Opener;
use crate::error::Error;
use crate::message::EncryptionContext;
use crate::message::Flaw;
use crate::message::Message;
use crate::name::KeyName;
use crate::policy;
use crate::policy::Action;
use crate::policy::Permit;
use crate::policy::Refused;

/// What a request says of a message to open.
#[derive(Clone, Copy)]
pub(super) struct Request<'r> {
    pub(super) action: Action,
    pub(super) from: &'r Binding,
    /// What [`Call::key_wanted`] made of its name; perhaps what the message says, where that is
    /// nothing.
    pub(super) name: Option<&'r KeyName>,
}

impl Call<'_> {
    /// The key that `from` names, unless it leaves that to the message.
    pub(super) fn key_wanted(
        &self,
        action: Action,
        from: &Binding,
    ) -> Result<Option<KeyName>, Error> {
        bound(action, from)?;
        match from.name.as_str() {
            "" => Ok(None),
            name => self.key_name(Fields::of(action).name, name).map(Some),
        }
    }

    /// What opens `message`, of which the header is whole at least, and the permit for that; both
    /// noted.
    pub(super) async fn opener(
        &self,
        request: Request<'_>,
        message: &Message<'_>,
    ) -> Result<(Permit, Opener), Error> {
        let said = match request.name {
            Some(_) => None,
            None => {
                let said = policy::key_named(message.context());
                self.note_request(said.as_ref(), &request.from.context);
                said
            }
        };
        let name = request.name.or(said.as_ref());
        let request = Request { name, ..request };
        let permit = loop {
            let ask = || self.permit_opening(request, message.context());
            let permit = self.knowing(name, ask).await?;
            self.note_permit(&permit);
            if self.confirm(&permit, 1).await? == Confirmed::Yes {
                break permit;
            }
        };
        self.note_context(&permit);
        let data_keys = &self.broker.data_keys;
        let opener = data_keys.opening(&permit, message, &self.patience).await;
        if let Ok(opener) = &opener {
            self.pay_for_kms(&opener.source);
        }
        let opener = opener.map_err(|error| Error::of_data_key(error, permit.key().owner()))?;
        self.note_data_key(&opener.source, opener.version());
        Ok((permit, opener))
    }

    /// The permit to open a message with `header`.
    pub(super) fn permit_opening(
        &self,
        request: Request<'_>,
        header: &EncryptionContext,
    ) -> Result<Permit, Error> {
        let permit = self
            .authorize_open(request, header)
            .map_err(|refused| refusal(refused, request.action))?;
        self.check_freshness(&permit)?;
        Ok(permit)
    }

    /// Whether what is known of the permitted key's tenant counts. Of the caller's own it was asked
    /// when the call began.
    pub(super) fn check_freshness(&self, permit: &Permit) -> Result<(), Error> {
        match permit.key().tenant().max_staleness() {
            Some(limit) => self.broker.check_freshness(Some(limit)),
            None => Ok(()),
        }
    }

    /// What it means that the message is none.
    ///
    /// A named key is authorized all the same: what the caller may not use must not tell good
    /// messages from bad ones.
    pub(super) async fn flawed(&self, request: Request<'_>, flaw: Flaw) -> Error {
        let ask = || self.denied(request);
        let denied = self.knowing(request.name, ask).await;
        denied.err().unwrap_or_else(|| flaw.into())
    }

    /// Whether the caller may open a message of which nothing is known but the key that the
    /// request names.
    ///
    /// # Errors
    /// [`Error::Denied`] and [`Error::StoreUnavailable`].
    pub(super) fn denied(&self, request: Request<'_>) -> Result<(), Error> {
        match self.authorize_open(request, &EncryptionContext::default()) {
            Err(refused @ (Refused::Denied(_) | Refused::OutOfTouch)) => {
                Err(refusal(refused, request.action))
            }
            Ok(_) | Err(Refused::Context(_) | Refused::Mismatch(_) | Refused::Suspended) => Ok(()),
        }
    }

    fn authorize_open(
        &self,
        request: Request<'_>,
        header: &EncryptionContext,
    ) -> Result<Permit, Refused> {
        let Request { action, from, name } = request;
        self.decided(|| {
            self.policy.authorize_open(
                &self.caller,
                action,
                name,
                header,
                &from.context,
                self.backing(name, &from.tokens),
            )
        })
    }
}

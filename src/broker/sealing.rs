//! From what a request says of a message to make, over the permit, to a data key with room for it:
//! one way for messages that leave whole or in a stream.

use crate::broker::Binding;
use crate::broker::Call;
use crate::broker::binding::Fields;
use crate::broker::binding::bound;
use crate::broker::grants::Confirmed;
use crate::datakeys::Reserved;
use crate::error::Error;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::Permit;

impl Call<'_> {
    /// The permit to seal a message bound to `to`, noted, and confirmed where the store must.
    pub(super) async fn permit(&self, action: Action, to: &Binding) -> Result<Permit, Error> {
        bound(action, to)?;
        let name = self.key_name(Fields::of(action).name, &to.name)?;
        self.note_request(Some(&name), &to.context);
        loop {
            let ask = || self.permit_sealing(action, &name, to);
            let permit = self.knowing(Some(&name), ask).await?;
            self.note_permit(&permit);
            if self.confirm(&permit, 1).await? == Confirmed::Yes {
                self.note_context(&permit);
                return Ok(permit);
            }
        }
    }

    /// The permit to seal under the key `name`, bound to `to`.
    pub(super) fn permit_sealing(
        &self,
        action: Action,
        name: &KeyName,
        to: &Binding,
    ) -> Result<Permit, Error> {
        let permit = self.decide(action, || {
            self.policy.authorize_seal(
                &self.caller,
                action,
                name,
                &to.context,
                self.backing(Some(name), &to.tokens),
            )
        })?;
        self.check_freshness(&permit)?;
        Ok(permit)
    }

    /// A data key for one message of `length` bytes, or for one of any length and nothing else;
    /// noted.
    pub(super) async fn reserve(
        &self,
        permit: &Permit,
        length: Option<u64>,
    ) -> Result<Reserved, Error> {
        let data_keys = &self.broker.data_keys;
        let reserved = match length {
            Some(length) => data_keys.sealing(permit, length, &self.patience).await,
            None => data_keys.sealing_alone(permit, &self.patience).await,
        };
        if let Ok(reserved) = &reserved {
            self.pay_for_kms(&reserved.source);
        }
        let reserved = reserved.map_err(|error| Error::of_data_key(error, permit.key().owner()))?;
        self.note_data_key(&reserved.source, reserved.version());
        Ok(reserved)
    }
}

//! Several items in one call: each is authorized as a call of its own would be, and what items have
//! in common is done once.
//!
//! Whether a caller may do something follows from nothing but the caller, the action, the key's
//! name, the context and the policy of the call. So items that are equal in these share a permit,
//! by reference: they are a group, and reserve or look up their data key together.

mod groups;
mod slots;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use crate::audit::Tally;
use crate::broker::Binding;
use crate::broker::Call;
use crate::broker::batch::groups::Alike;
use crate::broker::batch::groups::Group;
use crate::broker::batch::groups::Groups;
use crate::broker::batch::slots::part;
use crate::broker::batch::slots::refuse;
use crate::broker::batch::slots::settle;
use crate::broker::batch::slots::whole;
use crate::broker::binding::Fields;
use crate::broker::binding::bound;
use crate::broker::binding::bounded;
use crate::broker::binding::invalid;
use crate::broker::binding::refusal;
use crate::broker::grants::Confirmed;
use crate::broker::no_randomness;
use crate::broker::opening::Request;
use crate::crypto::Plaintext;
use crate::datakeys::Version;
use crate::error::Error;
use crate::message::Message;
use crate::message::SIDE_BY_SIDE;
use crate::name::KeyName;
use crate::policy;
use crate::policy::Action;
use crate::policy::Denied;
use crate::policy::Refused;

/// A plaintext among several.
pub struct Plain {
    /// What it is to be bound to.
    pub to: Binding,
    /// 1 byte to [`MAX_PLAINTEXT`](super::MAX_PLAINTEXT).
    pub plaintext: Bytes,
}

/// A message among several.
pub struct Cipher {
    /// What it is bound to.
    pub from: Binding,
    /// The message.
    pub ciphertext: Bytes,
}

/// What became of an item.
pub struct Answer<T> {
    /// The key's full name, as far as the item or its message names one.
    pub key: Option<Arc<str>>,
    /// What a call of its own would have ended in.
    pub outcome: Result<Done<T>, Error>,
}

/// An item that was served.
pub struct Done<T> {
    /// The key's full name.
    pub name: Arc<str>,
    /// The version that wraps the data key.
    pub version: Arc<Version>,
    /// The message, or the plaintext, which is wiped when dropped.
    pub content: T,
}

impl Call<'_> {
    /// Encrypts 1 to [`MAX_ITEMS`] plaintexts; an item that is an error already stays it. Answers
    /// are in the order of the items.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of items, [`Error::RateLimited`], and nothing else.
    pub async fn encrypt_batch(
        &self,
        items: Vec<Result<Plain, Error>>,
    ) -> Result<Vec<Answer<Vec<u8>>>, Error> {
        self.begin(items.len())?;
        let (items, mut answers) = part(items);
        let mut groups = self.seal_groups(&items, &mut answers);
        if self.learn_refused(&mut answers).await {
            groups = self.seal_groups(&items, &mut answers);
        }
        self.note_groups(&groups, |item| items.get(item).map(|(_, item)| &item.to));
        let mut done = stream::iter(groups)
            .map(|group| self.seal_group(group, &items))
            .buffer_unordered(AT_ONCE);
        while let Some((group, outcomes)) = done.next().await {
            settle(&group, outcomes, &items, &mut answers);
        }
        drop(done);
        whole(answers)
    }

    /// Decrypts 1 to [`MAX_ITEMS`] messages; an item that is an error already stays it. Answers are
    /// in the order of the items.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of items, [`Error::RateLimited`], and nothing else.
    pub async fn decrypt_batch(
        &self,
        items: Vec<Result<Cipher, Error>>,
    ) -> Result<Vec<Answer<Plaintext>>, Error> {
        self.begin(items.len())?;
        let (items, mut answers) = part(items);
        let mut messages = Vec::with_capacity(items.len());
        let mut groups = self.open_groups(&items, &mut messages, &mut answers);
        if self.learn_refused(&mut answers).await {
            messages.clear();
            groups = self.open_groups(&items, &mut messages, &mut answers);
        }
        self.note_groups(&groups, |item| items.get(item).map(|(_, item)| &item.from));
        let mut done = stream::iter(groups)
            .map(|group| self.open_group(group, &items, &messages))
            .buffer_unordered(AT_ONCE);
        while let Some((group, outcomes)) = done.next().await {
            settle(&group, outcomes, &items, &mut answers);
        }
        drop(done);
        whole(answers)
    }

    /// Notes what became of the items, for those who audit.
    pub fn note_items(&self, tally: Tally) {
        self.notes.add(|record| record.items = Some(tally));
    }

    fn begin(&self, items: usize) -> Result<(), Error> {
        match items {
            0 => Err(invalid("items", "there are none".to_owned())),
            1..=MAX_ITEMS => {
                self.note_items(Tally::new(items));
                // The call has paid for one.
                self.pay(u64::try_from(items - 1).unwrap_or(u64::MAX));
                Ok(())
            }
            _ => Err(invalid("items", format!("there are more than {MAX_ITEMS}"))),
        }
    }

    /// Asks the store about the keys of items that were refused because not all grants are known
    /// here. Whether the items have to be decided on again.
    async fn learn_refused<T>(&self, answers: &mut [Option<Answer<T>>]) -> bool {
        let mut learned = false;
        for answer in answers {
            if let Some(Answer { key, outcome }) = answer
                && let (Some(key), Err(Error::StoreUnavailable(_))) = (key, outcome)
                && let Ok(name) = KeyName::parse(key, self.caller.tenant())
            {
                if self.broker.grants.is_lost() || Box::pin(self.learn(&name)).await.is_err() {
                    break;
                }
                *answer = None;
                learned = true;
            }
        }
        learned
    }

    fn seal_groups(
        &self,
        items: &[(usize, Plain)],
        answers: &mut [Option<Answer<Vec<u8>>>],
    ) -> Vec<Group> {
        let mut groups = Groups::default();
        let action = Action::Encrypt;
        for (place, (at, Plain { to, plaintext })) in items.iter().enumerate() {
            let length = plaintext.len();
            let admitted = bounded("plaintext", length).and_then(|()| bound(action, to));
            let mut named = None;
            let admitted = admitted.and_then(|()| {
                let alike = Alike::of(to, &[]);
                groups.admit(place, length, alike, || {
                    let name = self.key_name(Fields::of(action).name, &to.name)?;
                    self.permit_sealing(action, named.insert(name), to)
                })
            });
            if let Err(error) = admitted {
                refuse(answers, *at, named.as_ref(), error);
            }
        }
        groups.all
    }

    async fn seal_group(
        &self,
        group: Group,
        items: &[(usize, Plain)],
    ) -> (Group, Vec<Result<Done<Vec<u8>>, Error>>) {
        if let Err(refused) = self.confirm_items(&group).await {
            return (group, refused);
        }
        let mut outcomes = Vec::with_capacity(group.items.len());
        let mut sealed = 0;
        while outcomes.len() < group.items.len() {
            let (_, sizes) = group.sizes.split_at(outcomes.len());
            let (_, places) = group.items.split_at(outcomes.len());
            let data_keys = &self.broker.data_keys;
            let reserved = data_keys
                .sealing_several(&group.permit, sizes, &self.patience)
                .await;
            if let Ok(reserved) = &reserved {
                self.pay_for_kms(&reserved.source);
            }
            let mut reserved = match reserved {
                Ok(reserved) => reserved,
                Err(error) => {
                    outcomes.extend(places.iter().map(|_| Err(group.failed(&error))));
                    break;
                }
            };
            let version = Arc::clone(reserved.version());
            self.note_shared_key(&reserved.source, &version);
            // The rest needs another reservation.
            let counted = places.len().min(reserved.messages());
            let (mut places, _) = places.split_at(counted);
            let (mut sizes, _) = sizes.split_at(counted);
            while !places.is_empty() {
                let (now, later) = places.split_at(stride(sizes));
                let texts = now.iter().filter_map(|place| items.get(*place));
                let texts = texts.map(|(_, item)| (&*item.to.associated_data, &*item.plaintext));
                let texts: Vec<(&[u8], &[u8])> = texts.collect();
                match reserved.seal_each(&texts) {
                    Ok(messages) => {
                        let done = |message| Ok(group.done(&version, message));
                        outcomes.extend(messages.into_iter().map(done));
                        sealed += texts.iter().map(|(_, text)| text.len()).sum::<usize>();
                    }
                    Err(error) => {
                        outcomes.extend(now.iter().map(|_| Err(no_randomness(&error))));
                    }
                }
                (_, sizes) = sizes.split_at(now.len());
                places = later;
                tokio::task::yield_now().await;
            }
        }
        self.note_more_plaintext(sealed);
        let outcomes = self.still(&group, outcomes);
        (group, outcomes)
    }

    /// Takes the uses of a group's items, all or none. What there is instead if that fails.
    async fn confirm_items<T>(&self, group: &Group) -> Result<(), Vec<Result<Done<T>, Error>>> {
        let uses = u64::try_from(group.items.len()).unwrap_or(u64::MAX);
        let why = match self.confirm(&group.permit, uses).await {
            Ok(Confirmed::Yes) => return Ok(()),
            Ok(Confirmed::No) => Refused::Denied(Denied::NoStatement),
            Err(_) => Refused::OutOfTouch,
        };
        let refused = |_: &usize| Err(refusal(why.clone(), group.permit.action()));
        Err(group.items.iter().map(refused).collect())
    }

    /// `outcomes`, unless what allowed them is gone.
    fn still<T>(
        &self,
        group: &Group,
        outcomes: Vec<Result<Done<T>, Error>>,
    ) -> Vec<Result<Done<T>, Error>> {
        let still = |done| self.stands(&group.permit).map(|()| done);
        let outcomes = outcomes.into_iter();
        outcomes.map(|outcome| outcome.and_then(still)).collect()
    }

    fn open_groups<'i>(
        &self,
        items: &'i [(usize, Cipher)],
        messages: &mut Vec<Option<Message<'i>>>,
        answers: &mut [Option<Answer<Plaintext>>],
    ) -> Vec<Group> {
        let mut groups = Groups::default();
        let action = Action::Decrypt;
        let mut latest: Option<usize> = None;
        for (place, (at, Cipher { from, ciphertext })) in items.iter().enumerate() {
            let (mut wanted, mut named) = (None, None);
            let like = latest.and_then(|latest| messages.get(latest)?.as_ref());
            let message = bound(action, from).and_then(|()| {
                let parsed = match like {
                    Some(like) => Message::parse_like(ciphertext, like),
                    None => Message::parse(ciphertext),
                };
                match parsed {
                    Err(flaw) => {
                        wanted = self.key_wanted(action, from)?;
                        let name = wanted.as_ref();
                        let denied = self.denied(Request { action, from, name });
                        Err(denied.err().unwrap_or_else(|| flaw.into()))
                    }
                    Ok(message) => {
                        let alike = Alike::of(from, message.claims());
                        groups.admit(place, ciphertext.len(), alike, || {
                            wanted = self.key_wanted(action, from)?;
                            if wanted.is_none() {
                                named = policy::key_named(message.context());
                            }
                            let name = wanted.as_ref().or(named.as_ref());
                            self.permit_opening(Request { action, from, name }, message.context())
                        })?;
                        Ok(message)
                    }
                }
            });
            match message {
                Ok(message) => {
                    messages.push(Some(message));
                    latest = Some(place);
                }
                Err(error) => {
                    messages.push(None);
                    refuse(answers, *at, wanted.or(named).as_ref(), error);
                }
            }
        }
        groups.all
    }

    async fn open_group(
        &self,
        group: Group,
        items: &[(usize, Cipher)],
        messages: &[Option<Message<'_>>],
    ) -> (Group, Vec<Result<Done<Plaintext>, Error>>) {
        let members = || {
            group.items.iter().filter_map(|place| {
                let (_, item) = items.get(*place)?;
                let message = messages.get(*place)?.as_ref()?;
                Some((message, &*item.from.associated_data))
            })
        };
        let mut outcomes = Vec::with_capacity(group.items.len());
        let Some((first, _)) = members().next() else {
            return (group, outcomes);
        };
        if let Err(refused) = self.confirm_items(&group).await {
            outcomes.extend(refused);
            return (group, outcomes);
        }
        let data_keys = &self.broker.data_keys;
        let count = group.items.len();
        let opener = data_keys
            .opening_several(&group.permit, first, count, &self.patience)
            .await;
        if let Ok(opener) = &opener {
            self.pay_for_kms(&opener.source);
        }
        let opener = match opener {
            Ok(opener) => opener,
            Err(error) => {
                outcomes.extend(members().map(|_| Err(group.failed(&error))));
                return (group, outcomes);
            }
        };
        let version = Arc::clone(opener.version());
        self.note_shared_key(&opener.source, &version);
        let mut opened = 0;
        let members: Vec<(&Message<'_>, &[u8])> = members().collect();
        let (mut members, mut sizes) = (members.as_slice(), group.sizes.as_slice());
        while !members.is_empty() {
            let (now, later) = members.split_at(stride(sizes));
            for outcome in opener.open_each(now) {
                outcomes.push(match outcome {
                    Ok(plaintext) => {
                        opened += plaintext.len();
                        Ok(group.done(&version, plaintext))
                    }
                    Err(flaw) => Err(flaw.into()),
                });
            }
            (_, sizes) = sizes.split_at(now.len());
            members = later;
            tokio::task::yield_now().await;
        }
        self.note_more_plaintext(opened);
        let outcomes = self.still(&group, outcomes);
        (group, outcomes)
    }

    fn note_groups<'i>(&self, groups: &[Group], binding: impl Fn(usize) -> Option<&'i Binding>) {
        let bindings = groups
            .iter()
            .filter_map(|group| binding(*group.items.first()?));
        let names = bindings.flat_map(|binding| binding.context.iter().map(|(name, _)| name));
        let names: BTreeSet<&String> = names.collect();
        self.notes.add(|record| {
            record.context_keys = names
                .into_iter()
                .take(MOST_NAMES)
                .map(String::as_str)
                .collect();
        });
        // One key is noted as in any other call; several stand with the items alone.
        if let Some((first, others)) = groups.split_first()
            && others.iter().all(|other| other.key == first.key)
        {
            self.note_permit(&first.permit);
            // Items of one group have one context.
            if others.is_empty() {
                self.note_context(&first.permit);
            }
        }
    }
}

/// How many items of these `sizes` in bytes to work on before other tasks run: of those that are
/// not large as many as are fastest together.
fn stride(sizes: &[u64]) -> usize {
    let mut done = 0;
    let within = |size: &&u64| {
        done += *size + PER_ITEM;
        done <= STRIDE
    };
    match sizes.iter().take_while(within).count() {
        0 => sizes.len().min(1),
        few if few < SIDE_BY_SIDE || few == sizes.len() => few,
        many => many - many % SIDE_BY_SIDE,
    }
}

/// Most items in a batch.
pub const MAX_ITEMS: usize = 1000;
/// Groups that may wait for KMS at once.
const AT_ONCE: usize = 16;
/// Most names of context pairs in the record.
const MOST_NAMES: usize = 64;
/// What others may have to wait for, in bytes: some 0.1 ms.
const STRIDE: u64 = 64 << 10;
/// What an item costs beside its bytes, in bytes.
const PER_ITEM: u64 = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_is_short_and_never_empty() {
        assert_eq!(stride(&[]), 0);
        assert_eq!(stride(&[1 << 20]), 1);
        assert_eq!(stride(&[1 << 20; 3]), 1);
        assert_eq!(stride(&[20 << 10; 9]), 3);
        assert_eq!(stride(&[5 << 10; 10]), 10);
        assert_eq!(stride(&[5 << 10; 11]), 8);
        assert_eq!(stride(&[0; 1000]), 64);
        assert_eq!(stride(&[1, 1, 1 << 20]), 2);
    }
}

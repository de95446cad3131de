//! Why a principal would be allowed or denied an operation. The code that decides calls decides
//! here too; of what it gives leave to do, nothing but the reason comes out.

use std::sync::Arc;

use crate::audit::Category;
use crate::broker::AdminCall;
use crate::broker::Binding;
use crate::broker::binding::bound;
use crate::broker::binding::invalid;
use crate::broker::binding::refusal;
use crate::broker::grants::grant_id;
use crate::broker::grants::right;
use crate::directory::Role;
use crate::error::Error;
use crate::grants;
use crate::grants::Backing;
use crate::grants::Operation;
use crate::identity::Caller;
use crate::identity::Id;
use crate::message::EncryptionContext;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::policy;
use crate::policy::Action;
use crate::policy::Denied;
use crate::policy::Direction;
use crate::policy::Permit;
use crate::policy::Policy;
use crate::policy::Rule;
use crate::store::grants::Right;

/// What is asked: would `principal` be allowed `operation`, bound so?
pub struct Question {
    /// Who, as text.
    pub principal: String,
    /// What.
    pub operation: Operation,
    /// With which key and context: of a message to open, the context that the principal itself
    /// would have sealed it with.
    pub binding: Binding,
    /// The grant that is to be retired, as text; empty for everything else.
    pub grant: String,
}

/// The answer, for operators.
pub struct Explanation {
    /// The tenant that identity rules map the principal to.
    pub tenant: Option<TenantId>,
    /// The first list of the key's policy that names the principal, whatever that allows.
    pub role: Option<Role>,
    /// What allows it, or why it fails.
    pub outcome: Result<Leave, Error>,
}

/// What allows something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// A grant.
    Grant(grants::Id),
    /// The list of the key policy that gives this role.
    Policy(Role),
}

impl From<Rule> for Leave {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Grant(basis) => Self::Grant(basis.id()),
            Rule::Policy(role) => Self::Policy(role),
        }
    }
}

impl AdminCall<'_> {
    /// Answers `question` by what this broker knows now.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn explain(&self, question: &Question) -> Result<Explanation, Error> {
        self.notes.add(|record| record.category = Category::Look);
        let binding = &question.binding;
        bound(FIELDS, binding)?;
        let id: Id = question.principal.parse().map_err(|_| {
            let why = "it is no principal: a SPIFFE id, dns:{name} or unix:uid={uid},gid={gid}";
            invalid("principal", why.to_owned())
        })?;
        let wish = wish(question)?;
        let policy = self.broker.policy();
        let Some(caller) = policy.rules().would_map(&id) else {
            return Ok(Explanation {
                tenant: None,
                role: None,
                outcome: Err(Error::Unmapped),
            });
        };
        let name = KeyName::parse(&binding.name, caller.tenant()).map_err(|_| {
            let why = "it is not keys/{key} or tenants/{tenant}/keys/{key}";
            invalid("key", why.to_owned())
        })?;
        self.notes.add(|record| {
            record.tenant = Some(name.tenant.clone());
            record.key = Some(name.clone());
            let pairs = binding.context.iter();
            record.context_keys = pairs.map(|(name, _)| name.as_str()).collect();
        });
        let seen = policy.authorize_describe(&caller, &name, Backing::NONE);
        let role = seen.ok().and_then(|(_, rule)| match rule {
            Rule::Grant(_) => None,
            Rule::Policy(role) => Some(role),
        });
        let grants = &self.broker.grants;
        let asked = match grants.is_whole() {
            true => None,
            false => grants.ask(&name, &caller).await.ok().map(Arc::new),
        };
        let book = grants.book_beside(asked.as_ref());
        let admitted = self.broker.admit(policy.directory(), &caller).map(|_| ());
        let outcome = match (admitted, wish) {
            (Err(refused), _) => Err(refused),
            (Ok(()), Wish::Create) => {
                let right = right(&policy, &caller, &name, book, &[]);
                right.and_then(|(_, right)| match right {
                    Right::Administrator => Ok(Leave::Policy(Role::Administrator)),
                    Right::Grants(candidates) => match candidates.first() {
                        Some(first) => Ok(Leave::Grant(*first)),
                        None => Err(Denied::NoStatement.into()),
                    },
                })
            }
            (Ok(()), Wish::Retire(id)) => {
                let retirable = grants.check_retirable(&name, &id, caller.principal());
                retirable.await.map(|()| Leave::Grant(id))
            }
            (Ok(()), Wish::See) => {
                let seen = policy.authorize_describe(&caller, &name, Backing::new(book, &[]));
                let seen = seen.map_err(|refused| refusal(refused, FIELDS));
                seen.map(|(_, rule)| rule.into())
            }
            (Ok(()), Wish::Use(action)) => {
                let backing = Backing::new(book, &[]);
                self.decide(&policy, &caller, action, &name, &binding.context, backing)
            }
        };
        Ok(Explanation {
            role,
            outcome,
            tenant: Some(caller.tenant().clone()),
        })
    }

    fn decide(
        &self,
        policy: &Policy,
        caller: &Caller,
        action: Action,
        name: &KeyName,
        own: &[(String, String)],
        grants: Backing<'_>,
    ) -> Result<Leave, Error> {
        let decided = match action.direction() {
            Direction::Open => {
                let header = match policy.directory().key(name) {
                    Some(key) => policy::seal_context(key, caller, own),
                    None => Ok(EncryptionContext::default()),
                };
                let header = header.map_err(|why| refusal(why.into(), FIELDS))?;
                policy.authorize_open(caller, action, Some(name), &header, own, grants)
            }
            Direction::Seal => policy.authorize_seal(caller, action, name, own, grants),
        };
        let permit: Permit = decided.map_err(|refused| refusal(refused, FIELDS))?;
        let limit = permit.key().tenant().max_staleness();
        self.broker.check_freshness(limit)?;
        Ok(permit.rule().into())
    }
}

/// What somebody wants of a key.
#[derive(Clone, Copy)]
enum Wish {
    Create,
    Retire(grants::Id),
    See,
    Use(Action),
}

fn wish(question: &Question) -> Result<Wish, Error> {
    let wish = match question.operation {
        Operation::CreateGrant => Wish::Create,
        Operation::Decrypt => Wish::Use(Action::Decrypt),
        Operation::DescribeKey => Wish::See,
        Operation::Encrypt => Wish::Use(Action::Encrypt),
        Operation::GenerateDataKey => Wish::Use(Action::GenerateDataKey),
        Operation::GenerateDataKeyWithoutPlaintext => {
            Wish::Use(Action::GenerateDataKeyWithoutPlaintext)
        }
        Operation::ReEncryptFrom => Wish::Use(Action::ReEncryptFrom),
        Operation::ReEncryptTo => Wish::Use(Action::ReEncryptTo),
        Operation::RetireGrant => return grant_id(&question.grant).map(Wish::Retire),
    };
    match question.grant.as_str() {
        "" => Ok(wish),
        _ => {
            let why = "the operation is not about a grant that there is".to_owned();
            Err(invalid("grant_id", why))
        }
    }
}

/// Whose fields are called as the question's.
const FIELDS: Action = Action::Encrypt;

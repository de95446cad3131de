//! Why a principal would be allowed or denied an operation. The code that decides calls decides
//! here too; of what it gives leave to do, nothing but the reason comes out.

use crate::audit::Category;
use crate::broker::AdminCall;
use crate::broker::Binding;
use crate::broker::binding::bound;
use crate::broker::binding::invalid;
use crate::broker::binding::refusal;
use crate::directory::Role;
use crate::error::Error;
use crate::grants::Backing;
use crate::grants::Operation;
use crate::identity::Caller;
use crate::identity::Id;
use crate::message::EncryptionContext;
use crate::name::KeyName;
use crate::name::TenantId;
use crate::policy;
use crate::policy::Action;
use crate::policy::Direction;
use crate::policy::Permit;
use crate::policy::Policy;
use crate::policy::Rule;

/// What is asked: would `principal` be allowed `operation`, bound so?
pub struct Question {
    /// Who, as text.
    pub principal: String,
    /// What.
    pub operation: Operation,
    /// With which key and context: of a message to open, the context that the principal itself
    /// would have sealed it with.
    pub binding: Binding,
}

/// The answer, for operators.
pub struct Explanation {
    /// The tenant that identity rules map the principal to.
    pub tenant: Option<TenantId>,
    /// The first list of the key's policy that names the principal, whatever that allows.
    pub role: Option<Role>,
    /// What allows it, or why it fails.
    pub outcome: Result<Rule, Error>,
}

impl AdminCall<'_> {
    /// Answers `question` by what this broker knows now.
    ///
    /// # Errors
    /// Those of the RPC.
    pub fn explain(&self, question: &Question) -> Result<Explanation, Error> {
        self.notes.add(|record| record.category = Category::Look);
        let binding = &question.binding;
        bound(FIELDS, binding)?;
        let id: Id = question.principal.parse().map_err(|_| {
            let why = "it is no principal: a SPIFFE id, dns:{name} or unix:uid={uid},gid={gid}";
            invalid("principal", why.to_owned())
        })?;
        let wish = wish(question.operation)?;
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
        Ok(Explanation {
            role,
            outcome: self.decide(&policy, &caller, wish, &name, &binding.context),
            tenant: Some(caller.tenant().clone()),
        })
    }

    fn decide(
        &self,
        policy: &Policy,
        caller: &Caller,
        wish: Wish,
        name: &KeyName,
        own: &[(String, String)],
    ) -> Result<Rule, Error> {
        let broker = self.broker;
        broker.admit(policy.directory(), caller)?;
        let grants = Backing::new(broker.grants.book(), &[]);
        let decided = match wish {
            Wish::See => {
                let seen = policy.authorize_describe(caller, name, grants);
                let (_, rule) = seen.map_err(|refused| refusal(refused, FIELDS))?;
                return Ok(rule);
            }
            Wish::Use(action) => match action.direction() {
                Direction::Open => {
                    let header = match policy.directory().key(name) {
                        Some(key) => policy::seal_context(key, caller, own),
                        None => Ok(EncryptionContext::default()),
                    };
                    let header = header.map_err(|why| refusal(why.into(), FIELDS))?;
                    policy.authorize_open(caller, action, Some(name), &header, own, grants)
                }
                Direction::Seal => policy.authorize_seal(caller, action, name, own, grants),
            },
        };
        let permit: Permit = decided.map_err(|refused| refusal(refused, FIELDS))?;
        broker.check_freshness(permit.key().tenant().max_staleness())?;
        Ok(permit.rule())
    }
}

/// What somebody wants of a key.
#[derive(Clone, Copy)]
enum Wish {
    See,
    Use(Action),
}

fn wish(operation: Operation) -> Result<Wish, Error> {
    Ok(Wish::Use(match operation {
        Operation::Decrypt => Action::Decrypt,
        Operation::DescribeKey => return Ok(Wish::See),
        Operation::Encrypt => Action::Encrypt,
        Operation::GenerateDataKey => Action::GenerateDataKey,
        Operation::GenerateDataKeyWithoutPlaintext => Action::GenerateDataKeyWithoutPlaintext,
        Operation::ReEncryptFrom => Action::ReEncryptFrom,
        Operation::ReEncryptTo => Action::ReEncryptTo,
        Operation::CreateGrant | Operation::RetireGrant => {
            let why = "it is about a grant: ask about an operation with a key";
            return Err(invalid("operation", why.to_owned()));
        }
    }))
}

/// Whose fields are called as the question's.
const FIELDS: Action = Action::Encrypt;

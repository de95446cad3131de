//! What operators do: bring in tenants, and the kill switch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::audit::Category;
use crate::audit::Notes;
use crate::broker::Broker;
use crate::broker::Receipt;
use crate::broker::binding::invalid;
use crate::directory::Directory;
use crate::directory::Documents;
use crate::directory::Standing;
use crate::error::Error;
use crate::identity::Operators;
use crate::identity::Rules;
use crate::identity::Session;
use crate::kms::Reach;
use crate::name::TenantId;
use crate::store;
use crate::store::Absent;
use crate::store::Applied;
use crate::store::Marked;

/// What the configuration says of the management of tenants. By default nobody manages them.
#[derive(Clone, Debug, Default)]
pub struct Management {
    /// Who may.
    pub operators: Operators,
    /// Which KMS keys a tenant's key may name.
    pub reach: Reach,
    /// Where tenants come from.
    pub origin: Origin,
}

/// Where tenants come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A file of the broker's own, which decides.
    File,
    /// Whatever operators bring into the store.
    #[default]
    Store,
}

/// One of the operators. Only [`Broker::operator`] makes one.
#[derive(Clone)]
pub struct Operator(Arc<Management>);

impl Broker {
    /// Has tenants managed so from now on.
    pub fn manage(&self, management: Management) {
        self.management.store(Arc::new(management));
    }

    /// The operator who calls in `session`.
    ///
    /// # Errors
    /// [`Error::NotOperator`].
    pub fn operator(&self, session: &Session, notes: &Notes) -> Result<Operator, Error> {
        notes.add(|record| record.category = Category::Manage);
        let management = self.management.load_full();
        if !management.operators.include(session.peer()) {
            return Err(Error::NotOperator);
        }
        notes.add(|record| record.rule = Some("operators"));
        Ok(Operator(management))
    }

    /// Begins a call of `operator` that ends at `end`, whatever it has come to.
    pub fn admin_call(&self, operator: Operator, notes: Notes, end: Instant) -> AdminCall<'_> {
        AdminCall {
            broker: self,
            management: operator.0,
            notes,
            end,
        }
    }
}

/// One call of one operator.
pub struct AdminCall<'a> {
    pub(super) broker: &'a Broker,
    management: Arc<Management>,
    pub(super) notes: Notes,
    end: Instant,
}

impl AdminCall<'_> {
    /// Brings the tenants file `text` into the store.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn apply(&self, text: String, absent: Absent) -> Result<Applied, Error> {
        if self.management.origin == Origin::File {
            return Err(Error::TenantsFileSet);
        }
        let rules = Arc::clone(self.broker.policy().rules());
        let reach = self.management.reach;
        let reading = spawn_blocking(move || read(&text, &rules, reach)).await;
        let documents = reading.map_err(|_| Error::Bug("a panic".into()))??;
        let applied = self.broker.grants.store.apply(&documents, absent).await?;
        self.notes.add(|record| record.change = applied.change);
        Ok(applied)
    }

    /// Suspends the tenant `name`, or lets it go on, and waits a while until all brokers do so.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn stand(&self, name: &str, standing: Standing) -> Result<Receipt, Error> {
        let tenant = self.tenant(name)?;
        let marked = self.broker.grants.store.stand(&tenant, standing).await;
        self.receipt(&tenant, marked).await
    }

    /// Drops the data keys of the tenant `name`, and waits a while until all brokers have.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn purge(&self, name: &str) -> Result<Receipt, Error> {
        let tenant = self.tenant(name)?;
        let marked = self.broker.grants.store.purge(&tenant).await;
        self.receipt(&tenant, marked).await
    }

    fn tenant(&self, name: &str) -> Result<TenantId, Error> {
        let id = name.strip_prefix("tenants/").and_then(|id| id.parse().ok());
        let id: TenantId =
            id.ok_or_else(|| invalid("name", "it is not tenants/{tenant}".to_owned()))?;
        self.notes.add(|record| record.tenant = Some(id.clone()));
        Ok(id)
    }

    async fn receipt(
        &self,
        tenant: &TenantId,
        marked: Result<Marked, store::Error>,
    ) -> Result<Receipt, Error> {
        let marked = marked.map_err(|error| match error {
            store::Error::UnknownTenant(_) => invalid("name", error.to_string()),
            error => error.into(),
        })?;
        self.notes.add(|record| record.change = Some(marked.change));
        let store = &self.broker.grants.store;
        // The change is made: so much of the time is left to say so.
        let end = self.end.checked_sub(ANSWER).unwrap_or(self.end);
        Ok(Receipt::of(store, tenant, marked, end).await?)
    }
}

/// What `text` says of each tenant, if it is a tenants file that can be served.
fn read(text: &str, rules: &Rules, reach: Reach) -> Result<Documents, Error> {
    let refused = |why: String| invalid("tenants", why);
    let read = Directory::parse_with_documents(text, Path::new("tenants"));
    let (directory, documents) = read.map_err(|error| refused(error.to_string()))?;
    directory.check_rules(rules).map_err(|clash| {
        refused(format!(
            "{clash}: name that pair otherwise in [[identity.rule]]"
        ))
    })?;
    for tenant in directory.tenants() {
        for key in directory.keys(tenant.id()) {
            if let Some(kms) = key.out_of(reach) {
                let name = key.name();
                return Err(refused(format!(
                    "the key {name} names {kms}, which this broker does not call: for local keys \
                     its configuration needs a section [kms.local], and one for playing calls no \
                     others"
                )));
            }
        }
    }
    Ok(documents)
}

/// For the last look at the store, and the answer.
const ANSWER: Duration = Duration::from_millis(250);

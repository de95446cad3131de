//! Tenants: brought in whole, and read by what has changed.

use std::collections::BTreeSet;

use crate::directory::Content;
use crate::directory::Documents;
use crate::directory::Row;
use crate::directory::Standing;
use crate::name::TenantId;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine;
use crate::store::engine::Connection;
use crate::store::engine::Value;
use crate::store::within;

/// What becomes of tenants that a file lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// They stay.
    Keep,
    /// They are removed.
    Remove,
}

/// What a file changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The number of the change; none if nothing changed.
    pub change: Option<u64>,
    /// Tenants that are new.
    pub added: Vec<TenantId>,
    /// Tenants that are not what they were.
    pub changed: Vec<TenantId>,
    /// Tenants that are no more.
    pub removed: Vec<TenantId>,
    /// How many stayed what they were.
    pub unchanged: usize,
}

/// What became of a change of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The number of the tenant's latest change: of this one, or of one that made it what it was to
    /// be already.
    pub change: u64,
    /// The number of the one before; the same if there was nothing to change.
    pub before: u64,
}

impl Marked {
    /// Whether there was something to change.
    pub fn is_new(self) -> bool {
        self.before < self.change
    }
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// The number of the latest change.
    pub number: u64,
    /// Whether what was known before counts no more: the rows are all that there is.
    pub whole: bool,
    /// The tenants that changed.
    pub tenants: Vec<Row>,
}

impl Store {
    /// Brings in `documents`, all or none. What is there already is left alone: a second time nothing
    /// changes, and no change is counted.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn apply(&self, documents: &Documents, absent: Absent) -> Result<Applied, Error> {
        // First without a lock: at most starts nothing has changed.
        let applied = within(async {
            let mut lease = self.reader().await?;
            let difference = difference(&mut lease, documents, absent).await?;
            lease.give_back();
            Ok(difference)
        });
        let applied = applied.await?;
        if applied.is_nothing() {
            return Ok(applied);
        }
        // Each statement is bounded; how many there are is up to the file.
        let (mut lease, number) = within(self.writer()).await?;
        let mut applied = difference(&mut lease, documents, absent).await?;
        for id in applied.added.iter().chain(&applied.changed) {
            let document = documents.get(id).map(String::as_str).unwrap_or_default();
            let values = [
                Value::Text(id.as_str()),
                Value::Text(document),
                Value::Number(number),
            ];
            within(lease.run(PUT, &values)).await?;
        }
        for id in &applied.removed {
            let values = [Value::Text(id.as_str()), Value::Number(number)];
            within(lease.run(REMOVE, &values)).await?;
        }
        if applied.is_nothing() {
            // Somebody else has brought in the same meanwhile: the number goes back.
            within(lease.run("ROLLBACK", &[])).await?;
            lease.give_back();
            return Ok(applied);
        }
        within(self.commit(lease, number)).await?;
        applied.change = Some(number);
        Ok(applied)
    }

    /// Suspends the tenant `id` or lets it go on. A tenant that is removed and comes back stands as
    /// it did.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`] for a tenant that never was, and the others.
    pub async fn stand(&self, id: &TenantId, standing: Standing) -> Result<Marked, Error> {
        let suspended = match standing {
            Standing::Active => false,
            Standing::Suspended => true,
        };
        self.mark(id, STAND, &[Value::Flag(suspended)]).await
    }

    /// Has the data keys of the tenant `id` dropped.
    ///
    /// # Errors
    /// As [`Store::stand`].
    pub async fn purge(&self, id: &TenantId) -> Result<Marked, Error> {
        self.mark(id, PURGE, &[]).await
    }

    /// Runs `statement`, of which the first values are the tenant and the change's number.
    async fn mark(
        &self,
        id: &TenantId,
        statement: &'static str,
        more: &[Value<'_>],
    ) -> Result<Marked, Error> {
        within(async {
            let (mut lease, number) = self.writer().await?;
            let id_value = Value::Text(id.as_str());
            let row = lease.row(CHANGE_OF, &[id_value]).await?;
            let before = row.map(|row| row.number(0)).transpose()?;
            let values = [&[id_value, Value::Number(number)], more].concat();
            if lease.run(statement, &values).await? > 0 {
                self.commit(lease, number).await?;
            } else {
                // The number goes back.
                lease.run("ROLLBACK", &[]).await?;
                lease.give_back();
                let change = before.ok_or_else(|| Error::UnknownTenant(id.clone()))?;
                return Ok(Marked {
                    change,
                    before: change,
                });
            }
            let before = before.ok_or(Error::Damaged("tenants"))?;
            Ok(Marked {
                change: number,
                before,
            })
        })
        .await
    }

    /// What has changed since the change `known`, or all that there is; none if nothing has.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn news(&self, known: Option<u64>) -> Result<Option<News>, Error> {
        if known == Some(self.latest().await?) {
            return Ok(None);
        }
        let mut lease = within(self.reader()).await?;
        within(lease.begin_reading()).await?;
        let number = within(latest(&mut lease)).await?;
        // A number that is behind what is known is that of a store restored from a copy.
        let since = known.filter(|known| *known <= number);
        let mut tenants = Vec::new();
        lease
            .each(CHANGED, &[Value::Number(since.unwrap_or(0))], |row| {
                tenants.push(tenant(&row));
                Ok(())
            })
            .await?;
        within(lease.run("COMMIT", &[])).await?;
        lease.give_back();
        Ok(Some(News {
            number,
            whole: since.is_none(),
            tenants,
        }))
    }
}

impl Store {
    /// What there is of the tenant `id`, if nothing has changed of it since the change `change`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn tenant(&self, id: &TenantId, change: u64) -> Result<Option<Row>, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let values = [Value::Text(id.as_str()), Value::Number(change)];
            let row = lease.row(ONE, &values).await?;
            lease.give_back();
            Ok(row.as_ref().map(tenant))
        })
        .await
    }

    /// The number of the latest change.
    pub(super) async fn latest(&self) -> Result<u64, Error> {
        within(async {
            let mut lease = self.reader().await?;
            let number = latest(&mut lease).await?;
            lease.give_back();
            Ok(number)
        })
        .await
    }
}

impl Applied {
    fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// The number of the latest change.
pub(super) async fn latest(connection: &mut Connection) -> Result<u64, Error> {
    let row = connection.row("SELECT n FROM change", &[]).await?;
    row.ok_or(Error::Damaged("change"))?.number(0)
}

/// What it takes to make the store what `documents` say.
async fn difference(
    connection: &mut Connection,
    documents: &Documents,
    absent: Absent,
) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    let mut missing: BTreeSet<&TenantId> = documents.keys().collect();
    connection
        .each(ALL, &[], |row| {
            let Row { id, content, .. } = tenant(&row);
            // A row under no tenant's id has never counted.
            let Ok(id) = id.parse::<TenantId>() else {
                return Ok(());
            };
            let list = match (documents.get(&id), content, absent) {
                (Some(new), Content::Document(old), _) if *new == old => {
                    applied.unchanged += 1;
                    missing.remove(&id);
                    return Ok(());
                }
                (Some(_), Content::Removed, _) | (None, Content::Removed, _) => return Ok(()),
                (Some(_), Content::Document(_) | Content::Damaged, _) => &mut applied.changed,
                (None, _, Absent::Remove) => &mut applied.removed,
                (None, _, Absent::Keep) => return Ok(()),
            };
            missing.remove(&id);
            list.push(id);
            Ok(())
        })
        .await?;
    applied.added = missing.into_iter().cloned().collect();
    Ok(applied)
}

/// A row of the columns `id`, `document`, `suspended` and `purged`.
fn tenant(row: &engine::Row) -> Row {
    let (content, standing, purged) = match (row.text(1), row.flag(2), row.number(3)) {
        (Ok(Some(document)), Ok(suspended), Ok(purged)) => {
            let standing = match suspended {
                false => Standing::Active,
                true => Standing::Suspended,
            };
            (Content::Document(document), standing, purged)
        }
        (Ok(None), Ok(_), Ok(_)) => (Content::Removed, Standing::Active, 0),
        (Err(_), _, _) | (_, Err(_), _) | (_, _, Err(_)) => {
            (Content::Damaged, Standing::Suspended, 0)
        }
    };
    // An id that is no text names no tenant.
    let id = row.text(0).ok().flatten().unwrap_or_default();
    Row {
        id,
        content,
        standing,
        purged,
    }
}

const ALL: &str = "SELECT id, document, suspended, purged FROM tenants";
const CHANGED: &str = "SELECT id, document, suspended, purged FROM tenants WHERE changed > $1";
const ONE: &str = "
    SELECT id, document, suspended, purged FROM tenants WHERE id = $1 AND changed = $2";
const CHANGE_OF: &str = "SELECT changed FROM tenants WHERE id = $1";
const PUT: &str = "
    INSERT INTO tenants (id, document, changed) VALUES ($1, $2, $3)
    ON CONFLICT (id) DO UPDATE SET document = excluded.document, changed = excluded.changed";
const STAND: &str = "
    UPDATE tenants SET suspended = $3, changed = $2 WHERE id = $1 AND suspended <> $3";
const PURGE: &str = "UPDATE tenants SET purged = $2, changed = $2 WHERE id = $1";
const REMOVE: &str = "UPDATE tenants SET document = NULL, changed = $2 WHERE id = $1";

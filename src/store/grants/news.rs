//! What has changed of grants: of all tenants, since a replica serves them all.

use jiff::Timestamp;

use crate::grants::Grant;
use crate::grants::Id;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Value;
use crate::store::grants::row;
use crate::store::grants::row::moment;
use crate::store::grants::row::select;
use crate::store::pool::Lease;
use crate::store::tenants::latest;
use crate::store::within;

/// Some news of a grant. A grant comes after those that it rests on.
pub enum Told {
    /// A row that is damaged: no such grant.
    Damaged(Option<Id>),
    /// A grant that was made, renewed or ended.
    Grant(Box<Grant>),
    /// What was known before counts no more: what follows is all that lives.
    Whole,
}

/// How far news went.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The number of the latest change.
    pub number: u64,
    /// What the store's clock says.
    pub now: Timestamp,
}

impl Store {
    /// Has `take` hear what has changed since the change `known`, or all that there is, and says how
    /// far that went.
    ///
    /// # Errors
    /// [`Error`]: what was told until then is not all.
    pub async fn grant_news(
        &self,
        known: Option<u64>,
        mut take: impl FnMut(Told) + Send,
    ) -> Result<Head, Error> {
        let mut lease = within(self.reader()).await?;
        within(lease.begin_reading()).await?;
        let number = within(latest(&mut lease)).await?;
        let now = within(lease.now()).await?;
        // A number that is behind what is known is that of a store restored from a copy.
        let since = known.filter(|known| *known <= number);
        if since != Some(number) {
            if since.is_none() {
                take(Told::Whole);
            }
            within(lease.keep_to_indexes()).await?;
            tell(&mut lease, since, now, take).await?;
        }
        within(lease.run("COMMIT", &[])).await?;
        lease.give_back();
        Ok(Head { number, now })
    }
}

/// Has `take` hear of the grants that changed since the change `since`, or of all that live at
/// `now`: page by page, since a statement's time is bounded and their number is not.
async fn tell(
    lease: &mut Lease,
    since: Option<u64>,
    now: Timestamp,
    mut take: impl FnMut(Told) + Send,
) -> Result<(), Error> {
    let (statement, living) = match since {
        Some(_) => (CHANGED, None),
        None => (LIVING, Some(moment(now))),
    };
    let mut resting = Vec::new();
    let mut last = since.or(Some(0));
    while let Some(from) = last.take() {
        let values = [Value::Number(from), Value::Number(PAGE)];
        let values: Vec<_> = values.into_iter().chain(living).collect();
        let mut rows = 0;
        lease
            .each(statement, &values, |row| {
                rows += 1;
                // Of a change there is one grant, so none is cut off from another. Rows without a
                // number come last.
                last = row::changed(&row).ok();
                match row::read(&row) {
                    Ok(grant) if grant.ancestors.is_empty() => {
                        take(Told::Grant(Box::new(grant)));
                    }
                    Ok(grant) => resting.push(grant),
                    Err(_) => take(Told::Damaged(row::id(&row).ok())),
                }
                Ok(())
            })
            .await?;
        last = last.filter(|_| rows == PAGE);
    }
    resting.sort_by_key(|grant| grant.ancestors.len());
    for grant in resting {
        take(Told::Grant(Box::new(grant)));
    }
    Ok(())
}

const CHANGED: &str = select!("changed > $1 ORDER BY changed LIMIT $2");
const LIVING: &str =
    select!("changed > $1 AND ending = 0 AND expires > $3 ORDER BY changed LIMIT $2");
/// Most rows of one statement: PostgreSQL gives them in a fraction of its time for one.
const PAGE: u64 = 20_000;

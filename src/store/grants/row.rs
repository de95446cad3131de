//! A grant as a row, and a row as a grant: trusted no more than what comes from outside.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::grants::Ancestor;
use crate::grants::Constraint;
use crate::grants::Ending;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::grants::Wanted;
use crate::message::EncryptionContext;
use crate::name::KeyName;
use crate::store::Error;
use crate::store::engine::Connection;
use crate::store::engine::Value;

pub(super) use crate::store::engine::Row;

/// Selects grants, in the order of columns that [`read`] reads.
macro_rules! select {
    ($where:literal) => {
        concat!(
            "SELECT id, tenant, key_id, grantee, retiring, operations, constrained, pairs, name, ",
            "lifetime, renewable, max_uses, creator, created, expires, change, ancestors, ending, ",
            "changed FROM grants WHERE ",
            $where
        )
    };
}

pub(super) use select;

/// The grant in `row`.
pub(super) fn read(row: &Row) -> Result<Grant, Error> {
    let text = |column| row.text(column)?.ok_or(DAMAGED);
    let seconds = |column| {
        let seconds = row.number(column)?;
        Ok::<_, Error>((seconds != 0).then(|| Duration::from_secs(seconds)))
    };
    let bits = u16::try_from(row.number(5)?).map_err(|_| DAMAGED)?;
    let kind = match row.number(6)? {
        0 => None,
        1 => Some(Kind::Equals),
        2 => Some(Kind::Subset),
        _ => return Err(DAMAGED),
    };
    let pairs: BTreeMap<String, String> = serde_json::from_str(&text(7)?).map_err(|_| DAMAGED)?;
    let constraint = match kind {
        None => None,
        Some(kind) => {
            let pairs = EncryptionContext::new(pairs).map_err(|_| DAMAGED)?;
            Some(Constraint::new(kind, pairs).map_err(|_| DAMAGED)?)
        }
    };
    let max_uses = u32::try_from(row.number(11)?).map_err(|_| DAMAGED)?;
    Ok(Grant {
        id: id(row)?,
        wanted: Wanted {
            key: KeyName {
                tenant: text(1)?.parse().map_err(|_| DAMAGED)?,
                key: text(2)?.parse().map_err(|_| DAMAGED)?,
            },
            terms: Terms {
                grantee: text(3)?.parse().map_err(|_| DAMAGED)?,
                operations: Operations::from_bits(bits).ok_or(DAMAGED)?,
                constraint,
            },
            retiring: optional(&text(4)?)?,
            name: optional(&text(8)?)?,
            lifetime: seconds(9)?,
            renewable: seconds(10)?,
            max_uses: NonZeroU32::new(max_uses),
        },
        creator: text(12)?.parse().map_err(|_| DAMAGED)?,
        created: time(row.number(13)?)?,
        expires: time(row.number(14)?)?,
        change: row.number(15)?,
        ancestors: ancestors(&text(16)?)?,
        ending: match row.number(17)? {
            0 => None,
            1 => Some(Ending::Retire),
            2 => Some(Ending::Revoke),
            3 => Some(Ending::Spend),
            _ => return Err(DAMAGED),
        },
    })
}

/// Of which grant `row` is.
pub(super) fn id(row: &Row) -> Result<Id, Error> {
    row.text(0)?.and_then(|id| id.parse().ok()).ok_or(DAMAGED)
}

/// The number of the latest change of the grant in `row`.
pub(super) fn changed(row: &Row) -> Result<u64, Error> {
    row.number(18)
}

/// Adds `grant`, which has never been used.
pub(super) async fn insert(connection: &mut Connection, grant: &Grant) -> Result<(), Error> {
    let Grant {
        id,
        wanted,
        creator,
        created,
        expires,
        change,
        ancestors,
        ending: how,
    } = grant;
    let Wanted {
        key,
        terms,
        retiring,
        name,
        lifetime,
        renewable,
        max_uses,
    } = wanted;
    let pairs = terms.constraint.iter().flat_map(|one| one.pairs().pairs());
    let pairs: BTreeMap<&str, &str> = pairs.collect();
    let pairs = serde_json::to_string(&pairs).map_err(|_| DAMAGED)?;
    let kind = terms.constraint.as_ref().map(Constraint::kind);
    let ancestors = ancestors
        .iter()
        .map(|one| format!("{}:{}", one.id, one.change));
    let ancestors: Vec<String> = ancestors.collect();
    let (id, ancestors) = (id.to_string(), ancestors.join(","));
    let seconds = |span: &Option<Duration>| Value::Number(span.map_or(0, |span| span.as_secs()));
    let values = [
        Value::Text(&id),
        Value::Text(key.tenant.as_str()),
        Value::Text(key.key.as_str()),
        Value::Text(terms.grantee.as_str()),
        Value::Text(retiring.as_ref().map_or("", |one| one.as_str())),
        Value::Number(terms.operations.bits().into()),
        Value::Number(match kind {
            None => 0,
            Some(Kind::Equals) => 1,
            Some(Kind::Subset) => 2,
        }),
        Value::Text(&pairs),
        Value::Text(name.as_ref().map_or("", |name| name.as_str())),
        seconds(lifetime),
        seconds(renewable),
        Value::Number(max_uses.map_or(0, |uses| uses.get().into())),
        Value::Text(creator.as_str()),
        moment(*created),
        moment(*expires),
        Value::Number(*change),
        Value::Text(&ancestors),
        Value::Number(ending(*how)),
    ];
    connection.run(INSERT, &values).await?;
    Ok(())
}

/// `time` as it stands in rows.
pub(super) fn moment(time: Timestamp) -> Value<'static> {
    Value::Number(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// `how` as it stands in rows.
pub(super) fn ending(how: Option<Ending>) -> u64 {
    match how {
        None => 0,
        Some(Ending::Retire) => 1,
        Some(Ending::Revoke) => 2,
        Some(Ending::Spend) => 3,
    }
}

fn time(milliseconds: u64) -> Result<Timestamp, Error> {
    let milliseconds = i64::try_from(milliseconds).map_err(|_| DAMAGED)?;
    Timestamp::from_millisecond(milliseconds).map_err(|_| DAMAGED)
}

fn optional<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Error> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| DAMAGED),
    }
}

fn ancestors(text: &str) -> Result<Arc<[Ancestor]>, Error> {
    let one = |text: &str| {
        let (id, change) = text.split_once(':')?;
        Some(Ancestor {
            id: id.parse().ok()?,
            change: change.parse().ok()?,
        })
    };
    let list = text.split(',').filter(|text| !text.is_empty()).map(one);
    let list: Option<Vec<Ancestor>> = list.collect();
    let list = list.filter(|list| list.len() <= Grant::MAX_ANCESTORS);
    Ok(list.ok_or(DAMAGED)?.into())
}

const DAMAGED: Error = Error::Damaged("grants");
const INSERT: &str = "
    INSERT INTO grants (id, tenant, key_id, grantee, retiring, operations, constrained, pairs, name,
        lifetime, renewable, max_uses, uses, creator, created, expires, change, ancestors, ending,
        changed)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, $13, $14, $15, $16, $17, $18, $16)";

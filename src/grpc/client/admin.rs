//! What the command line does for operators.

use jiff::Timestamp;
use tonic::Response;
use tonic::Status;
use tonic::transport::Channel;

use super::Client;
use super::Error;
use super::timed;
use crate::grants::Operation;
use crate::grpc::grants::number;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_client::AdminServiceClient;
use crate::store::Absent;

/// What a tenants file changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The number of the change in the store; none if nothing changed.
    pub change: Option<u64>,
    /// Tenants that are new.
    pub added: Vec<String>,
    /// Tenants that are not what they were.
    pub changed: Vec<String>,
    /// Tenants that are no more.
    pub removed: Vec<String>,
    /// How many stayed what they were.
    pub unchanged: u64,
}

/// What to do to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Drop its data keys.
    Purge,
    /// Let it go on.
    Resume,
    /// Refuse its callers and any use of its keys.
    Suspend,
}

/// What became of a change of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The number of the change in the store.
    pub change: u64,
    /// Whether there was something to change.
    pub changed: bool,
    /// The brokers that go by it.
    pub confirmed: Vec<Replica>,
    /// The brokers that have not said so.
    pub unconfirmed: Vec<Replica>,
}

/// A broker on the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its process.
    pub id: String,
    /// Its host.
    pub name: String,
    /// From when on it refuses the tenant, where it has not confirmed.
    pub refuses: Option<Timestamp>,
}

/// What an explanation is wanted of: all as the broker takes it.
#[derive(Clone)]
pub struct Case {
    /// Whom.
    pub principal: String,
    /// What.
    pub operation: Operation,
    /// The key's name.
    pub key: String,
    /// The pairs that the principal would name.
    pub context: Vec<(String, String)>,
    /// The id of the grant to retire.
    pub grant: Option<String>,
}

/// Whether and why; what there is not is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it would be allowed.
    pub allowed: bool,
    /// The principal's tenant.
    pub tenant: String,
    /// What allows it.
    pub rule: String,
    /// The grant that allows it.
    pub grant: String,
    /// The list of the key's policy that names the principal.
    pub role: String,
    /// The reason with which it would fail.
    pub reason: String,
    /// For people.
    pub explanation: String,
}

impl Client {
    /// Brings a tenants file into the broker's store.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn apply(&self, tenants: String, absent: Absent) -> Result<Applied, Error> {
        let request = pb::ApplyRequest {
            tenants,
            prune: absent == Absent::Remove,
        };
        let answer = self.administer(async |service| service.apply(timed(request.clone())).await);
        let pb::ApplyResponse {
            change,
            added,
            changed,
            removed,
            unchanged,
        } = answer.await?;
        Ok(Applied {
            change: (change > 0).then_some(change),
            added,
            changed,
            removed,
            unchanged,
        })
    }

    /// Does `measure` to `tenant`, an id.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn manage_tenant(&self, tenant: &str, measure: Measure) -> Result<Receipt, Error> {
        let name = format!("tenants/{tenant}");
        let receipt = self
            .administer(async |service| {
                let name = name.clone();
                let receipt = match measure {
                    Measure::Purge => {
                        let request = timed(pb::PurgeTenantRequest { name });
                        let answer = service.purge_tenant(request).await?;
                        answer.map(|answer| answer.receipt)
                    }
                    Measure::Resume => {
                        let request = timed(pb::ResumeTenantRequest { name });
                        let answer = service.resume_tenant(request).await?;
                        answer.map(|answer| answer.receipt)
                    }
                    Measure::Suspend => {
                        let request = timed(pb::SuspendTenantRequest { name });
                        let answer = service.suspend_tenant(request).await?;
                        answer.map(|answer| answer.receipt)
                    }
                };
                Ok(receipt)
            })
            .await?;
        let pb::Receipt {
            change,
            changed,
            confirmed,
            unconfirmed,
        } = receipt.unwrap_or_default();
        Ok(Receipt {
            change,
            changed,
            confirmed: confirmed.into_iter().map(replica).collect(),
            unconfirmed: unconfirmed.into_iter().map(replica).collect(),
        })
    }

    /// Has the broker explain `case`.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn explain(&self, case: Case) -> Result<Verdict, Error> {
        let request = pb::ExplainRequest {
            principal: case.principal,
            operation: number(case.operation).into(),
            key: case.key,
            encryption_context: case.context.into_iter().collect(),
            grant_id: case.grant.unwrap_or_default(),
        };
        let answer = self.administer(async |service| service.explain(timed(request.clone())).await);
        let pb::ExplainResponse {
            allowed,
            tenant,
            rule,
            grant_id,
            role,
            reason,
            explanation,
        } = answer.await?;
        Ok(Verdict {
            allowed,
            tenant,
            rule,
            grant: grant_id,
            role,
            reason,
            explanation,
        })
    }

    async fn administer<T>(
        &self,
        attempt: impl AsyncFn(&mut AdminServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let service = AdminServiceClient::new(self.channel.clone());
        self.again(async || attempt(&mut service.clone()).await)
            .await
    }
}

fn replica(replica: pb::Replica) -> Replica {
    let pb::Replica {
        id,
        name,
        refuse_time,
    } = replica;
    let refuses = refuse_time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok());
    Replica { id, name, refuses }
}

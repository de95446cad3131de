//! The RPCs of operators: parse, act, render.

use bytes::Bytes;
use jiff::Timestamp;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::broker::Binding;
use crate::broker::Explanation;
use crate::broker::Leave;
use crate::broker::Question;
use crate::broker::Receipt;
use crate::directory::Standing;
use crate::error::Error;
use crate::grpc::grants::operation;
use crate::grpc::grants::timestamp;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_server::AdminService;
use crate::grpc::service::Service;
use crate::grpc::service::failure;
use crate::store::Absent;
use crate::store::Applied;
use crate::store::Replica;

#[tonic::async_trait]
impl AdminService for Service {
    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        self.administer(request, async |call, request| {
            let pb::ApplyRequest { tenants, prune } = request;
            let absent = match prune {
                false => Absent::Keep,
                true => Absent::Remove,
            };
            Ok(applied(call.apply(tenants, absent).await?))
        })
        .await
    }

    async fn suspend_tenant(
        &self,
        request: Request<pb::SuspendTenantRequest>,
    ) -> Result<Response<pb::SuspendTenantResponse>, Status> {
        self.administer(request, async |call, request| {
            let made = call.stand(&request.name, Standing::Suspended).await?;
            let receipt = Some(receipt(made, Some));
            Ok(pb::SuspendTenantResponse { receipt })
        })
        .await
    }

    async fn resume_tenant(
        &self,
        request: Request<pb::ResumeTenantRequest>,
    ) -> Result<Response<pb::ResumeTenantResponse>, Status> {
        self.administer(request, async |call, request| {
            let made = call.stand(&request.name, Standing::Active).await?;
            // Until they hear of it they refuse the tenant anyway.
            let receipt = Some(receipt(made, |_| None));
            Ok(pb::ResumeTenantResponse { receipt })
        })
        .await
    }

    async fn purge_tenant(
        &self,
        request: Request<pb::PurgeTenantRequest>,
    ) -> Result<Response<pb::PurgeTenantResponse>, Status> {
        self.administer(request, async |call, request| {
            let receipt = Some(receipt(call.purge(&request.name).await?, Some));
            Ok(pb::PurgeTenantResponse { receipt })
        })
        .await
    }

    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        self.administer(request, async |call, request| {
            Ok(explained(call.explain(&question(request)?).await?))
        })
        .await
    }
}

fn applied(applied: Applied) -> pb::ApplyResponse {
    let Applied {
        change,
        added,
        changed,
        removed,
        unchanged,
    } = applied;
    let [added, changed, removed] =
        [added, changed, removed].map(|ids| ids.iter().map(ToString::to_string).collect());
    pb::ApplyResponse {
        change: change.unwrap_or_default(),
        added,
        changed,
        removed,
        unchanged: u64::try_from(unchanged).unwrap_or(u64::MAX),
    }
}

/// What `receipt` says, of those who have not confirmed with the time that `refuses` makes of
/// theirs.
fn receipt(receipt: Receipt, refuses: impl Fn(Timestamp) -> Option<Timestamp>) -> pb::Receipt {
    let Receipt {
        marked,
        confirmed,
        unconfirmed,
    } = receipt;
    let unconfirmed = unconfirmed.into_iter();
    pb::Receipt {
        change: marked.change,
        changed: marked.is_new(),
        confirmed: confirmed
            .into_iter()
            .map(|one| replica(one, None))
            .collect(),
        unconfirmed: unconfirmed
            .map(|(one, from)| replica(one, refuses(from)))
            .collect(),
    }
}

fn replica(replica: Replica, refuses: Option<Timestamp>) -> pb::Replica {
    pb::Replica {
        id: replica.id.to_string(),
        name: replica.name,
        refuse_time: refuses.map(timestamp),
    }
}

fn question(request: pb::ExplainRequest) -> Result<Question, Error> {
    let pb::ExplainRequest {
        principal,
        operation: number,
        key,
        encryption_context,
        grant_id,
    } = request;
    let operation = operation(number).ok_or_else(|| Error::Invalid {
        field: "operation",
        why: "there is none, or one that keys cannot do".to_owned(),
    })?;
    let binding = Binding {
        name: key,
        context: encryption_context.into_iter().collect(),
        associated_data: Bytes::new(),
        tokens: Vec::new(),
    };
    Ok(Question {
        principal,
        operation,
        binding,
        grant: grant_id,
    })
}

fn explained(explanation: Explanation) -> pb::ExplainResponse {
    let Explanation {
        tenant,
        role,
        outcome,
    } = explanation;
    let known = pb::ExplainResponse {
        tenant: tenant.map_or_else(String::new, |tenant| tenant.to_string()),
        role: role.map_or_else(String::new, |role| role.label().to_owned()),
        ..pb::ExplainResponse::default()
    };
    match outcome {
        Ok(leave) => {
            let (rule, grant_id, explanation) = match leave {
                Leave::Grant(id) => ("grant", id.to_string(), "a grant allows it".to_owned()),
                Leave::Policy(role) => {
                    let list = role.label();
                    let explanation = format!("the key's policy allows it: {list}");
                    (list, String::new(), explanation)
                }
            };
            pb::ExplainResponse {
                allowed: true,
                rule: rule.to_owned(),
                grant_id,
                explanation,
                ..known
            }
        }
        Err(error) => pb::ExplainResponse {
            reason: error.reason().to_owned(),
            explanation: failure(&error).cause,
            ..known
        },
    }
}

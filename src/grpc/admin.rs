//! The RPCs of operators: parse, act, render.

use jiff::Timestamp;
use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::broker::Receipt;
use crate::directory::Standing;
use crate::grpc::grants::timestamp;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_server::AdminService;
use crate::grpc::service::Service;
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

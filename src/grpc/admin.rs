//! The RPCs of operators: parse, act, render.

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::directory::Standing;
use crate::grpc::pb;
use crate::grpc::pb::admin_service_server::AdminService;
use crate::grpc::service::Service;
use crate::store::Absent;
use crate::store::Applied;
use crate::store::Marked;

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
            let marked = call.stand(&request.name, Standing::Suspended).await?;
            Ok(pb::SuspendTenantResponse {
                receipt: Some(receipt(marked)),
            })
        })
        .await
    }

    async fn resume_tenant(
        &self,
        request: Request<pb::ResumeTenantRequest>,
    ) -> Result<Response<pb::ResumeTenantResponse>, Status> {
        self.administer(request, async |call, request| {
            let marked = call.stand(&request.name, Standing::Active).await?;
            Ok(pb::ResumeTenantResponse {
                receipt: Some(receipt(marked)),
            })
        })
        .await
    }

    async fn purge_tenant(
        &self,
        request: Request<pb::PurgeTenantRequest>,
    ) -> Result<Response<pb::PurgeTenantResponse>, Status> {
        self.administer(request, async |call, request| {
            let marked = call.purge(&request.name).await?;
            Ok(pb::PurgeTenantResponse {
                receipt: Some(receipt(marked)),
            })
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

fn receipt(marked: Marked) -> pb::Receipt {
    pb::Receipt {
        change: marked.change,
        changed: marked.is_new(),
    }
}

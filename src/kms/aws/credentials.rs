//! Whether our own credentials are being loaded: calls wait for that, and KMS is not to blame.

use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::future;
use tokio::sync::watch;
use tokio::time::Instant;

/// What is known of the loads. Clones know the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    ended: Option<Instant>,
}

impl Loads {
    /// When the last load ended; waits for one that is under way. None if there was none.
    pub(super) async fn ended(&self) -> Option<Instant> {
        let mut states = self.0.subscribe();
        let idle = states.wait_for(|state| state.under_way == 0).await;
        idle.ok()?.ended
    }

    fn begin(&self) -> Load<'_> {
        self.0.send_modify(|state| state.under_way += 1);
        Load(self)
    }
}

/// A load, until it is dropped.
struct Load<'a>(&'a Loads);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| {
            state.under_way -= 1;
            state.ended = Some(Instant::now());
        });
    }
}

/// A source of credentials whose loads are told of.
#[derive(Debug)]
pub(super) struct Watched {
    source: SharedCredentialsProvider,
    loads: Loads,
}

impl Watched {
    pub(super) fn new(source: SharedCredentialsProvider, loads: Loads) -> Self {
        Self { source, loads }
    }
}

impl ProvideCredentials for Watched {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let _load = self.loads.begin();
            self.source.provide_credentials().await
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.source.fallback_on_interrupt()
    }
}

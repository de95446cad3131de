//! News of changes: this process's own at once, and others' when PostgreSQL tells of them.

use std::convert::Infallible;
use std::future;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgListener;
use sqlx::postgres::PgPoolOptions;
use tokio::time::sleep;
use tokio::time::timeout;

use crate::crypto::random::jittered;
use crate::store::Error;
use crate::store::Store;
use crate::store::engine::Engine;
use crate::store::within;

impl Store {
    /// Waits for a change: one that this process made since the last wait, or one that
    /// [`Store::listen`] heard of. Not all are heard of, so whoever waits also asks now and then.
    pub async fn wait(&self) {
        self.news.notified().await;
    }

    /// Listens to the server for changes by others, where there is one.
    pub async fn listen(&self) -> Infallible {
        let Engine::Postgres(options) = self.reading.engine() else {
            return future::pending().await;
        };
        loop {
            if let Ok(mut listener) = self.listener(options).await {
                // What was told before is lost.
                self.news.notify_one();
                while let Ok(Ok(Some(_))) = timeout(RENEWAL, listener.try_recv()).await {
                    self.news.notify_one();
                }
            }
            sleep(jittered(PAUSE)).await;
        }
    }

    async fn listener(&self, options: &PgConnectOptions) -> Result<PgListener, Error> {
        // The library insists when it is refused: it is let at a server that is there.
        self.latest().await?;
        within(async {
            self.reading.turn().await;
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(PATIENCE)
                .connect_lazy_with(options.clone());
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(listener)
        })
        .await
    }
}

/// Where changes are told of.
const CHANNEL: &str = "keybroker";
/// A connection that was cut without a word looks like one without news.
const RENEWAL: Duration = Duration::from_secs(300);
/// Before listening again.
const PAUSE: Duration = Duration::from_secs(1);
/// For making the connection.
const PATIENCE: Duration = Duration::from_secs(2);

//! The primitives of logic that races, under one name, so that model tests can put their own in
//! their place (`tests/models`).

use std::future::Future;
use std::sync::PoisonError;
use std::time::Duration;

pub(crate) use std::sync::Condvar;
pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::MutexGuard;
pub(crate) use std::sync::RwLock;
pub(crate) use std::sync::RwLockReadGuard;
pub(crate) use std::sync::RwLockWriteGuard;
pub(crate) use std::sync::atomic;

/// Locks. What a panic left behind is whole: nothing panics between two writes that belong
/// together.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives up the lock until `condition` is notified, or for no reason.
pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], shared.
pub(crate) fn read<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    rwlock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], alone.
pub(crate) fn write<T: ?Sized>(rwlock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    rwlock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `future` in a task of its own. What it resolves to is an error when the task panics.
pub(crate) fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Result<T, tokio::task::JoinError>> + Send + 'static {
    tokio::spawn(future)
}

/// What `future` resolves to, none when it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Lets so much time pass.
pub(crate) async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Runs `act`, which is called from inside a lock that is none of these: models take it for one
/// step, since they can change threads at no point in it.
pub(crate) fn step<T>(act: impl FnOnce() -> T) -> T {
    act()
}

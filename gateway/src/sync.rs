//! Locks and switches.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Takes `mutex`. Nothing panics while it holds one of these locks.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `switch` is on, or nobody is left who could turn it on.
pub(crate) async fn turned_on(switch: &mut watch::Receiver<bool>) {
    let _ = switch.wait_for(|on| *on).await.map(drop);
}

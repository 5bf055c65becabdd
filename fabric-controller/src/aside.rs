//! Work that takes a thread for a while: files, and long thoughts.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinError,
};

/// Does it where it holds up nothing else. On a runtime of one thread it is done at once:
/// whatever happens there happens in one order, as a simulation needs it.
///
/// # Errors
///
/// It has panicked.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

//! A task that ends with whoever started it.

use std::future::Future;

use tokio::task::{JoinError, JoinHandle};

/// A task that is aborted when this is dropped.
#[must_use = "it ends when this is dropped"]
#[derive(Debug)]
pub struct Task<T = ()>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// Starts it on the runtime of whoever asks.
    pub fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn ended(&mut self) -> Result<T, JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn it_ends_with_whoever_holds_it_and_says_what_came_of_it() {
        assert_eq!(Task::spawn(async { 7 }).ended().await.unwrap(), 7);
        let counted = Arc::new(());
        let held = Arc::clone(&counted);
        let task = Task::spawn(async move {
            let _held = held;
            pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&counted), 2);
        drop(task);
        let ended = async {
            while Arc::strong_count(&counted) > 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), ended).await.unwrap();
    }
}

//! One writer replaces a whole value, many readers see the old one or the new one.

use std::sync::{Arc, PoisonError, RwLock};

/// A value that its owner replaces as a whole and any thread may load.
///
/// A `RwLock<Arc<T>>` behind two methods. The lock is held for one reference count; at one load per run of
/// packets it is as fast as anything cleverer.
#[derive(Debug)]
pub struct Published<T>(RwLock<Arc<T>>);

impl<T> Published<T> {
    /// Publishes a first value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// The newest value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        // A panic while the lock is held cannot leave a half-written `Arc`, so poison says nothing.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the value. Readers that loaded before keep the old one.
    pub fn publish(&self, value: T) {
        let value = Arc::new(value);
        // The old value may be large; it is dropped after the lock is released.
        let old = {
            let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
            core::mem::replace(&mut *slot, value)
        };
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_keep_what_they_loaded() {
        let published = Published::new(1);
        let old = published.load();
        published.publish(2);
        assert_eq!((*old, *published.load()), (1, 2));
    }
}

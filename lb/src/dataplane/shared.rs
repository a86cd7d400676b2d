//! Tables in memory, for tests of what is read while it is written.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::Cells;

/// Memory that a thread can read as packets would.
pub(super) struct Shared<A>(Arc<[A]>);

impl<A> Clone for Shared<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

macro_rules! shared {
    ($atomic:ty, $word:ty) => {
        impl Shared<$atomic> {
            pub(super) fn zeroed(len: usize) -> Self {
                Self((0..len).map(|_| <$atomic>::new(0)).collect())
            }
        }
        impl Cells<$word> for Shared<$atomic> {
            fn len(&self) -> usize {
                self.0.len()
            }
            fn get(&self, at: usize) -> $word {
                self.0[at].load(Ordering::Acquire)
            }
            fn set(&mut self, at: usize, value: $word) {
                self.0[at].store(value, Ordering::Release);
            }
        }
    };
}
shared!(AtomicU32, u32);
shared!(AtomicU64, u64);

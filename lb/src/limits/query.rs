//! Which limits somebody asks for.

use ipnet::IpNet;

use super::{record::LimitRecord, spec::ClassWord};
use crate::config::Mode;

/// A page of limits by id, of those that match all that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitQuery {
    /// Only higher ids.
    pub after: u64,
    /// No more than so many.
    pub most: usize,
    pub vip: Option<String>,
    pub class: Option<ClassWord>,
    pub mode: Option<Mode>,
    /// The limit's prefix lies in this one.
    pub within: Option<IpNet>,
    /// The limit's prefix has all of this one.
    pub covers: Option<IpNet>,
    /// The comment has this in it.
    pub comment: Option<String>,
}

impl LimitQuery {
    pub fn matches(&self, record: &LimitRecord) -> bool {
        let spec = &record.spec;
        self.vip
            .as_ref()
            .is_none_or(|vip| spec.vip.as_ref() == Some(vip))
            && self.class.is_none_or(|class| spec.class == class)
            && self.mode.is_none_or(|mode| spec.mode == mode)
            && self.within.is_none_or(|outer| outer.contains(&spec.prefix))
            && self.covers.is_none_or(|inner| spec.prefix.contains(&inner))
            && self
                .comment
                .as_ref()
                .is_none_or(|part| spec.comment.contains(&**part))
    }
}

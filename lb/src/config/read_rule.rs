//! Reads `[[rule]]`: rules that hold as long as they stand in the config.

use std::collections::HashSet;

use super::{error::suggestion, section::Section};
use crate::{
    book::SpecError,
    rules::{self, Origin, RuleSpec},
};

/// All of them, which must fit the data plane together.
pub(super) fn rules(sections: &[Section<'_>], vips: &HashSet<&str>) -> Vec<RuleSpec> {
    let rules: Vec<_> = sections
        .iter()
        .filter_map(|section| rule(section, vips))
        .collect();
    if let (Err(error), Some(last)) = (rules::fit(&rules), sections.last()) {
        last.error(|| error.to_string());
    }
    rules
}

/// One `[[rule]]`.
fn rule(section: &Section<'_>, vips: &HashSet<&str>) -> Option<RuleSpec> {
    let field = section.required("text", "\"proto udp; sport 53 -> drop\"")?;
    let text = field.string()?;
    let spec = text.parse::<RuleSpec>().and_then(|spec| {
        if spec.ttl_seconds.is_some() {
            let message = "a rule of the config holds as long as it stands there; remove `expire`";
            return Err(SpecError::of("expire", message));
        }
        Ok(spec)
    });
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) => {
            field.error(|| format!("`text`: {error}"));
            return None;
        }
    };
    if let Some(vip) = &spec.vip
        && !vips.contains(vip.as_str())
    {
        field.error(|| {
            let near = suggestion(vip, vips.iter().copied());
            format!("`text`: there is no VIP `{vip}`{near}")
        });
        return None;
    }
    Some(RuleSpec {
        origin: Origin::Config,
        ..spec
    })
}

//! Reads `[[pool]]` with its backends.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use super::{
    error::grouped,
    keys,
    model::{AllDown, Backend, Forward, Pool},
    outside::Outside,
    read_health,
    section::Section,
};

/// A pool, and where its parts stand in the file.
pub(super) struct PlacedPool {
    pub(super) pool: Pool,
    /// Of each backend's address.
    pub(super) backends_at: Vec<usize>,
    /// Of the health check, or of the pool if it has none.
    pub(super) health_at: usize,
}

pub(super) const FORWARDS: &[(&str, Forward)] = &[
    ("l2", Forward::L2),
    ("ipip", Forward::Ipip),
    ("gue", Forward::Gue),
    ("local", Forward::Local),
];

/// One `[[pool]]`.
pub(super) fn pool(section: &Section<'_>, outside: Outside) -> Option<PlacedPool> {
    let name = section
        .required("name", "\"web\"")
        .and_then(|field| field.name());
    let health = section.or("health", read_health::NO_CHECK, |field| {
        read_health::health(&field.table(&keys::HEALTH)?, outside)
    });
    let health_at = section.get("health").map_or(section.at, |field| field.at);
    let all_down = section.or("all_down", AllDown::Drop, |field| field.word(ALL_DOWN));
    let slow_start = section.or("slow_start", Duration::ZERO, |field| {
        field.duration(Duration::ZERO..=SLOW_START_MAX)
    });
    let backends = backends(section);
    let slots = slots(section, backends.as_ref().map_or(0, Vec::len));

    let (backends, backends_at) = backends?.into_iter().unzip();
    Some(PlacedPool {
        pool: Pool {
            name: name?.to_owned(),
            health: health?,
            slots: slots?,
            all_down: all_down?,
            slow_start: slow_start?,
            backends,
        },
        backends_at,
        health_at,
    })
}

const ALL_DOWN: &[(&str, AllDown)] = &[
    ("drop", AllDown::Drop),
    ("last_known", AllDown::LastKnown),
    ("reset", AllDown::Reset),
];
const SLOW_START_MAX: Duration = Duration::from_secs(60 * 60);

fn backends(section: &Section<'_>) -> Option<Vec<(Backend, usize)>> {
    let Some(field) = section.get("backend") else {
        section
            .error(|| "this pool has no backends; add a [[pool.backend]] with an `address`".into());
        return None;
    };
    let tables = field.tables(&keys::BACKEND)?;
    if tables.is_empty() {
        field.error(|| "this pool has no backends; add one with an `address`".into());
    }
    let mut seen: HashSet<IpAddr> = HashSet::with_capacity(tables.len());
    let (mut backends, mut weightless, mut broken) =
        (Vec::with_capacity(tables.len()), true, tables.is_empty());
    for table in &tables {
        let forward = table.optional("forward", |field| field.word(FORWARDS));
        let weight = table.or("weight", 1, |field| field.integer(0..=1000));
        weightless &= weight == Some(0);
        let address = table
            .required("address", "\"192.0.2.10\"")
            .and_then(|field| Some((field, field.address()?)));
        let Some((field, address)) = address else {
            broken = true;
            continue;
        };
        if !seen.insert(address) {
            field.error(|| {
                format!(
                    "backend `{address}` is in this pool twice; to send it more, raise its `weight`"
                )
            });
        }
        match (weight, forward) {
            (Some(weight), Some(forward)) => backends.push((
                Backend {
                    address,
                    weight,
                    forward,
                },
                field.at,
            )),
            _ => broken = true,
        }
    }
    if weightless && !tables.is_empty() {
        section.error(|| "every backend of this pool has `weight = 0`, so no flow could go anywhere; give one a weight of 1 or more".into());
    }
    (!broken).then_some(backends)
}

/// Slots must be prime, or Maglev's permutations would not reach every slot.
fn slots(section: &Section<'_>, backends: usize) -> Option<u32> {
    let field = section.get("slots");
    let slots = section.or("slots", SLOTS, |field| field.integer(SLOTS_MIN..=SLOTS_MAX))?;
    let needed = u32::try_from(backends.saturating_mul(2)).unwrap_or(u32::MAX);
    if needed > SLOTS_MAX {
        section.error(|| {
            format!(
                "this pool has {} backends; {} is the most",
                grouped(backends as u64),
                grouped(u64::from(SLOTS_MAX / 2))
            )
        });
        return None;
    }
    let right = prime_from(slots.max(needed));
    if right == slots {
        return Some(slots);
    }
    let wrong = || {
        let (shown, right) = (grouped(slots.into()), grouped(right.into()));
        if slots < needed {
            format!(
                "`slots` is {shown}, too few for {backends} backends (twice as many, and a prime); write `slots = {right}`"
            )
        } else {
            format!("`slots` is {shown}, which is not a prime; the next one is {right}")
        }
    };
    match field {
        Some(field) => field.error(wrong),
        None => section.error(wrong),
    }
    None
}

const SLOTS: u32 = 65_537;
const SLOTS_MIN: u32 = 11;
/// A prime, so that there is one at or above every allowed number.
const SLOTS_MAX: u32 = 1_048_573;

fn prime_from(number: u32) -> u32 {
    let is_prime = |number: u32| {
        number >= 2
            && (2..)
                .take_while(|d| d * d <= number)
                .all(|d| !number.is_multiple_of(d))
    };
    (number..)
        .find(|candidate| is_prime(*candidate))
        .unwrap_or(SLOTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_prime_is_found_up_to_the_largest_table() {
        assert_eq!(prime_from(11), 11);
        assert_eq!(prime_from(65_536), 65_537);
        assert_eq!(prime_from(1_048_572), SLOTS_MAX);
        assert_eq!(prime_from(SLOTS_MAX), SLOTS_MAX);
    }
}

//! Who is next: items of several tenants, handed out in proportion to the tenants' weights.
//!
//! Start-time fair queueing: virtual time goes on with what is handed out, an item takes its tenant
//! further by 1 ÷ weight, and the tenant that is furthest behind comes first. No tenant is ever
//! further behind than one item of each other tenant, however many they have waiting.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::name::TenantId;

/// Items by tenant.
pub(crate) struct Fair<T> {
    flows: HashMap<TenantId, Flow<T>>,
    /// The flows with something in them, the next one first.
    heads: BTreeMap<Head, TenantId>,
    /// Virtual time: where the last item stood that was handed out.
    now: u64,
    length: usize,
}

/// A place in the order of flows: virtual time, then who came first.
type Head = (u64, u64);

struct Flow<T> {
    /// In the order in which they came.
    waiting: BTreeMap<u64, T>,
    /// Where the first of them stands, or the next that comes.
    tag: u64,
    head: Option<Head>,
    step: u64,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            heads: BTreeMap::new(),
            now: 0,
            length: 0,
        }
    }
}

impl<T> Fair<T> {
    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Adds an item of `tenant`, whose weight this is. No other item has its `number`; those of a
    /// tenant are handed out in their numbers' order.
    pub(crate) fn push(&mut self, tenant: &TenantId, weight: u32, number: u64, item: T) {
        let now = self.now;
        let flow = self.flows.entry(tenant.clone()).or_insert_with(|| Flow {
            waiting: BTreeMap::new(),
            tag: now,
            head: None,
            step: 0,
        });
        flow.step = step(weight);
        flow.waiting.insert(number, item);
        if flow.head.is_none() {
            // Who had nothing waiting has no claim to the time before.
            flow.tag = flow.tag.max(now);
            let head = (flow.tag, number);
            flow.head = Some(head);
            self.heads.insert(head, tenant.clone());
        }
        self.length += 1;
    }

    /// Hands out the next item of a tenant that `may` have one.
    pub(crate) fn pop(&mut self, may: impl Fn(&TenantId) -> bool) -> Option<T> {
        let (head, tenant) = self.heads.iter().find(|(_, tenant)| may(tenant))?;
        let (head, tenant) = (*head, tenant.clone());
        let flow = self.flows.get_mut(&tenant)?;
        let (_, item) = flow.waiting.pop_first()?;
        self.length -= 1;
        // One that was passed over, because it might not have any, does not catch up.
        self.now = self.now.max(flow.tag);
        flow.tag = self.now + flow.step;
        self.heads.remove(&head);
        flow.head = flow
            .waiting
            .first_key_value()
            .map(|(number, _)| (flow.tag, *number));
        if let Some(head) = flow.head {
            self.heads.insert(head, tenant);
        }
        self.forget();
        Some(item)
    }

    /// Takes the item with this number of `tenant` out, if it still waits.
    pub(crate) fn remove(&mut self, tenant: &TenantId, number: u64) -> Option<T> {
        let flow = self.flows.get_mut(tenant)?;
        let item = flow.waiting.remove(&number)?;
        self.length -= 1;
        if flow.waiting.is_empty()
            && let Some(head) = flow.head.take()
        {
            self.heads.remove(&head);
            self.forget();
        }
        Some(item)
    }

    /// Takes out the items for which `chosen` holds, with their numbers.
    pub(crate) fn take(&mut self, chosen: impl Fn(&T) -> bool) -> Vec<(u64, T)> {
        let mut places = Vec::new();
        for (tenant, flow) in &self.flows {
            let found = flow.waiting.iter().filter(|(_, item)| chosen(item));
            places.extend(found.map(|(number, _)| (tenant.clone(), *number)));
        }
        places
            .into_iter()
            .filter_map(|(tenant, number)| Some((number, self.remove(&tenant, number)?)))
            .collect()
    }

    /// How many items would be handed out before one more of `tenant`, if no others came.
    pub(crate) fn before(&self, tenant: &TenantId, weight: u32) -> usize {
        let (mut mine, mut own) = (self.now, 0);
        if let Some(flow) = self.flows.get(tenant) {
            own = flow.waiting.len();
            mine = mine.max(flow.tag) + step(weight) * u64::try_from(own).unwrap_or(u64::MAX);
        }
        let others = self.heads.values().filter(|other| *other != tenant);
        let others = others
            .filter_map(|other| self.flows.get(other))
            .map(|flow| {
                let ahead = match mine.checked_sub(flow.tag) {
                    Some(behind) => behind / flow.step + 1,
                    None => 0,
                };
                usize::try_from(ahead)
                    .map_or(flow.waiting.len(), |ahead| ahead.min(flow.waiting.len()))
            });
        own + others.sum::<usize>()
    }

    /// Forgets flows that have nothing waiting and are not ahead of the others.
    fn forget(&mut self) {
        if self.heads.is_empty() {
            self.flows.clear();
            self.now = 0;
        } else if self.flows.len() > 2 * self.heads.len() + FEW {
            let now = self.now;
            self.flows
                .retain(|_, flow| flow.head.is_some() || flow.tag > now);
        }
    }
}

fn step(weight: u32) -> u64 {
    (WHOLE / u64::from(weight.max(1))).max(1)
}

/// How far an item of a tenant of weight 1 takes it: the least common multiple of small weights
/// times a power of two, so that their shares are exact.
const WHOLE: u64 = 2520 << 16;
/// So many flows are no burden.
const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("a tenant")
    }

    /// The tenants of the next items.
    fn drain(fair: &mut Fair<&'static str>, count: usize) -> String {
        (0..count).filter_map(|_| fair.pop(|_| true)).collect()
    }

    fn filled(tenants: &[(&'static str, u32, usize)]) -> Fair<&'static str> {
        let mut fair = Fair::default();
        for (name, weight, count) in tenants {
            for _ in 0..*count {
                add(&mut fair, name, *weight, name);
            }
        }
        fair
    }

    fn add(fair: &mut Fair<&'static str>, name: &str, weight: u32, item: &'static str) -> u64 {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        fair.push(&tenant(name), weight, number, item);
        number
    }

    #[test]
    fn tenants_take_turns_whoever_came_first_with_how_many() {
        let mut fair = filled(&[("a", 1, 9), ("b", 1, 2), ("c", 1, 1)]);
        assert_eq!(drain(&mut fair, 6), "abcaba");
        assert_eq!(fair.len(), 6);
    }

    #[test]
    fn weights_are_shares() {
        let mut fair = filled(&[("a", 3, 90), ("b", 1, 90)]);
        let order = drain(&mut fair, 40);
        assert_eq!(order.matches('a').count(), 30);
    }

    #[test]
    fn who_comes_back_at_once_does_not_pass_those_who_wait() {
        let mut fair = filled(&[("a", 1, 1), ("b", 1, 5)]);
        let mut order = String::new();
        for _ in 0..8 {
            let next = fair.pop(|_| true).expect("an item");
            order.push_str(next);
            if next == "a" {
                add(&mut fair, "a", 1, "a");
            }
        }
        assert_eq!(order, "abbababa");
    }

    #[test]
    fn who_was_passed_over_does_not_catch_up() {
        let mut fair = filled(&[("a", 1, 9), ("b", 1, 9)]);
        for _ in 0..5 {
            assert_eq!(fair.pop(|one| one.as_str() != "a"), Some("b"));
        }
        assert_eq!(drain(&mut fair, 5), "aabab");
    }

    #[test]
    fn what_left_counts_no_more() {
        let mut fair = filled(&[("b", 1, 2)]);
        let number = add(&mut fair, "a", 1, "a");
        assert_eq!(fair.remove(&tenant("a"), number), Some("a"));
        assert_eq!(fair.remove(&tenant("a"), number), None);
        assert_eq!(drain(&mut fair, 9), "bb");
        assert_eq!((fair.len(), fair.flows.len(), fair.now), (0, 0, 0));
    }

    #[test]
    fn the_place_of_one_more_is_known_beforehand() {
        let fair = filled(&[("a", 1, 9), ("b", 1, 2)]);
        for (name, weight, before) in [("a", 1, 11), ("b", 1, 5), ("c", 1, 2)] {
            assert_eq!(fair.before(&tenant(name), weight), before, "{name}");
            let mut fair = filled(&[("a", 1, 9), ("b", 1, 2)]);
            add(&mut fair, name, weight, "x");
            let order = drain(&mut fair, 12);
            assert_eq!(order.find('x'), Some(before), "{order}");
        }
    }
}

//! Accounts: what is sent for the members of each host that proved nothing. docs/PROTOCOL.md,
//! "Budgets".

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bootcast_proto::{BitRate, RemotePath, Token};

use super::principal::Principal;

/// Budget of each principal in bytes, unless the file is larger: five passes of what boot loaders
/// usually fetch.
pub(super) const BUDGET: u64 = 256 << 20;

/// A budget refills with 1 / this of the ceiling. So what is sent for nobody takes little of the
/// rate in the long run.
const REFILL_DIVISOR: u64 = 32;

/// Time for which a proof of life counts.
const PROVEN_TIME: Duration = Duration::from_secs(60 * 60);

/// Maximum number of accounts. Bounds memory.
const MAX_ACCOUNTS: usize = 65_536;

/// Maximum number of forgotten plain members whose leaves still count. Bounds memory.
const MAX_FORGOTTEN: usize = 16_384;

/// Number of passes that plain members get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainTrust {
    /// Each gets all its passes, whatever they cost.
    Allow,
    /// The budget of its host limits the passes of each.
    Limited,
    /// Their joins are refused.
    Deny,
}

/// Entry of a cast for the account of a principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Bytes of the file that were or will be sent on its behalf only.
    Charge(Principal, u64),
    /// A member of it showed that it received something.
    Proof(Principal),
    /// Symbols and pages that it asked for beyond its ration.
    Deferred(Principal, u64),
    /// A plain member of it was forgotten.
    Forgotten(Principal, Token),
}

/// Accounts of all principals that were charged or proven lately.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Rate at which budgets refill.
    refill: BitRate,
    /// Passes that a proven plain member gets; and the budgets that a proven principal has.
    passes: NonZeroU32,
    by_principal: BTreeMap<Principal, Account>,
    /// Plain members that were forgotten lately. The leave of one that had all it needs in its last
    /// pass arrives after the end of this pass.
    forgotten: BTreeMap<Token, Principal>,
    /// Tokens that were put into `forgotten`, oldest first. Some have left since.
    forgotten_in_order: VecDeque<Token>,
}

#[derive(Clone, Debug)]
struct Account {
    /// Bytes of the budget that were used up at `at`.
    used: u64,
    at: Instant,
    proven_until: Option<Instant>,
    /// File of which a plain member had all its passes. Another join of it is a sign of life.
    had_passes_of: Option<RemotePath>,
}

impl Accounts {
    /// Creates accounts whose budgets refill with a share of `ceiling`. Proven plain members get
    /// `passes` passes.
    pub(super) fn new(ceiling: BitRate, passes: NonZeroU32) -> Self {
        let refill = ceiling.bits_per_second() / REFILL_DIVISOR;
        let refill = BitRate::from_bits_per_second(refill).unwrap_or(ceiling);
        Self {
            refill,
            passes,
            by_principal: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            forgotten_in_order: VecDeque::new(),
        }
    }

    /// Charges bytes of a file.
    pub(super) fn charge(&mut self, principal: Principal, bytes: u64, now: Instant) {
        let account = self.account(principal, now);
        account.used = account.used.saturating_add(bytes);
    }

    /// Clears what a principal was charged, because a member of it received something.
    pub(super) fn prove(&mut self, principal: Principal, now: Instant) {
        let account = self.account(principal, now);
        account.used = 0;
        account.proven_until = Some(now + PROVEN_TIME);
    }

    /// Records that a plain member of this principal was forgotten, after passes of a file.
    pub(super) fn on_forgotten(
        &mut self,
        principal: Principal,
        token: Token,
        path: &RemotePath,
        now: Instant,
    ) {
        self.account(principal, now).had_passes_of = Some(path.clone());
        if self.forgotten_in_order.len() >= MAX_FORGOTTEN
            && let Some(oldest) = self.forgotten_in_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
        self.forgotten_in_order.push_back(token.clone());
        self.forgotten.insert(token, principal);
        debug_assert!(self.forgotten.len() <= MAX_FORGOTTEN, "tokens would accumulate");
    }

    /// Handles a leave with a token that is no member any more. It proves the principal of a plain
    /// member that was forgotten lately.
    pub(super) fn on_late_leave(&mut self, token: &Token, now: Instant) {
        if let Some(principal) = self.forgotten.remove(token) {
            self.prove(principal, now);
        }
    }

    /// Records a plain join. It proves the principal if an earlier member of it had all its passes
    /// of this file.
    pub(super) fn on_plain_join(&mut self, principal: Principal, path: &RemotePath, now: Instant) {
        let Some(account) = self.by_principal.get_mut(&principal) else { return };
        if account.had_passes_of.as_ref() == Some(path) {
            account.had_passes_of = None;
            account.proven_until = Some(now + PROVEN_TIME);
        }
    }

    /// Whether a member of this principal gave a proof of life lately.
    pub(super) fn is_proven(&self, principal: Principal, now: Instant) -> bool {
        let account = self.by_principal.get(&principal);
        account.is_some_and(|account| account.proven_until.is_some_and(|until| now < until))
    }

    /// Returns the number of passes that a plain member of this principal gets, of a file of this
    /// size in bytes.
    pub(super) fn passes_of(&self, principal: Principal, file: u64, now: Instant) -> u64 {
        let most = self.passes.get().into();
        if self.is_proven(principal, now) {
            return most;
        }
        BUDGET.checked_div(file).unwrap_or(most).clamp(1, most)
    }

    /// Whether the budget of a principal is used up, for a file of this size in bytes.
    pub(super) fn is_used_up(&self, principal: Principal, file: u64, now: Instant) -> bool {
        self.excess(principal, file, 0, now).is_some()
    }

    /// Returns the time until the budget of a principal is enough for a pass over a file of this
    /// size in bytes. `None` if it is enough now.
    pub(super) fn refills_in(
        &self,
        principal: Principal,
        file: u64,
        now: Instant,
    ) -> Option<Duration> {
        let excess = self.excess(principal, file, file, now).filter(|excess| *excess > 0)?;
        Some(self.refill.time_to_send(excess))
    }

    /// Returns by how many bytes the budget for a file is exceeded if `more` bytes are sent.
    fn excess(&self, principal: Principal, file: u64, more: u64, now: Instant) -> Option<u64> {
        let account = self.by_principal.get(&principal)?;
        let factor = if self.is_proven(principal, now) { self.passes.get().into() } else { 1 };
        let budget = file.max(BUDGET).saturating_mul(factor);
        account.used_at(self.refill, now).saturating_add(more).checked_sub(budget)
    }

    /// Returns the account of a principal as it is now.
    fn account(&mut self, principal: Principal, now: Instant) -> &mut Account {
        if self.by_principal.len() >= MAX_ACCOUNTS && !self.by_principal.contains_key(&principal) {
            self.make_room(now);
        }
        let new = Account { used: 0, at: now, proven_until: None, had_passes_of: None };
        let account = self.by_principal.entry(principal).or_insert(new);
        account.used = account.used_at(self.refill, now);
        account.at = account.at.max(now);
        debug_assert!(self.by_principal.len() <= MAX_ACCOUNTS, "accounts would grow without end");
        self.by_principal.get_mut(&principal).expect("inserted above")
    }

    /// Forgets accounts that have refilled, and any other one if there are none.
    fn make_room(&mut self, now: Instant) {
        let refill = self.refill;
        self.by_principal.retain(|_, account| account.used_at(refill, now) > 0);
        if self.by_principal.len() >= MAX_ACCOUNTS {
            self.by_principal.pop_first();
        }
    }
}

impl Account {
    /// Returns the bytes that are used up at `now`.
    fn used_at(&self, refill: BitRate, now: Instant) -> u64 {
        let refilled = refill.bytes_in(now.saturating_duration_since(self.at));
        self.used.saturating_sub(refilled)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(number: u8) -> Principal {
        std::net::IpAddr::from([10, 0, 0, number]).into()
    }

    fn path(name: &str) -> RemotePath {
        RemotePath::decode(name).unwrap()
    }

    /// Accounts that refill with 32 Mbit/s: 4 MB a second.
    fn accounts() -> Accounts {
        Accounts::new("1024mbit".parse().unwrap(), NonZeroU32::new(5).unwrap())
    }

    #[test]
    fn the_numbers_of_the_protocol_are_those_of_the_accounts() {
        let page = include_str!("../../../docs/PROTOCOL.md");
        let budgets = page.split("### Budgets").nth(1).unwrap().split("### Web pages").next();
        let text = budgets.unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let numbers = [
            format!("The **budget** of a host is {} MiB", BUDGET >> 20),
            format!("refills with 1/{REFILL_DIVISOR} of the rate"),
            "is **proven** for an hour".to_owned(),
            "that many times as large".to_owned(),
        ];
        for number in numbers {
            assert!(text.contains(&number), "{number}");
        }
    }

    #[test]
    fn a_budget_is_256_mib_or_the_file_and_refills() {
        let (mut accounts, now) = (accounts(), Instant::now());
        accounts.charge(host(1), GIB, now);
        assert!(!accounts.is_used_up(host(1), 2 * GIB, now));
        assert_eq!(accounts.refills_in(host(2), 1, now), None, "another host");
        assert!(accounts.is_used_up(host(1), GIB, now));
        // A pass over the same file needs all of the budget.
        for (file, seconds) in [(GIB, 268), (1, 201)] {
            let time = accounts.refills_in(host(1), file, now).unwrap();
            assert_eq!(time.as_secs(), seconds, "{file}");
            assert_eq!(accounts.refills_in(host(1), file, now + time), None);
        }
    }

    #[test]
    fn a_small_file_gets_all_its_passes_and_a_large_one_a_single_pass() {
        let (mut accounts, now) = (accounts(), Instant::now());
        let passes = |accounts: &Accounts| {
            [0, 1, 51 << 20, 52 << 20, 200 << 20, 10 * GIB]
                .map(|file| accounts.passes_of(host(1), file, now))
        };
        assert_eq!(passes(&accounts), [5, 5, 5, 4, 1, 1]);
        accounts.prove(host(1), now);
        assert_eq!(passes(&accounts), [5; 6]);
    }

    #[test]
    fn a_proven_host_has_five_budgets_and_a_leave_clears_them() {
        let (mut accounts, now) = (accounts(), Instant::now());
        accounts.charge(host(1), GIB, now);
        accounts.on_plain_join(host(1), &path("a"), now);
        assert!(!accounts.is_proven(host(1), now), "no member had passes of it");
        accounts.on_forgotten(host(1), Token::from_random(1), &path("a"), now);
        accounts.on_plain_join(host(1), &path("b"), now);
        assert!(!accounts.is_proven(host(1), now), "another file");
        accounts.on_plain_join(host(1), &path("a"), now);
        assert!(accounts.is_proven(host(1), now));
        assert_eq!(accounts.refills_in(host(1), GIB, now), None);
        accounts.charge(host(1), 4 * GIB, now);
        assert!(accounts.is_used_up(host(1), GIB, now));
        accounts.on_late_leave(&Token::from_random(2), now);
        assert!(accounts.is_used_up(host(1), GIB, now));
        accounts.on_late_leave(&Token::from_random(1), now);
        assert_eq!(accounts.refills_in(host(1), GIB, now), None);
        assert!(!accounts.is_proven(host(1), now + PROVEN_TIME));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut accounts, now) = (accounts(), Instant::now());
        for number in 0..70_000_u32 {
            let principal = std::net::IpAddr::from(number.to_be_bytes()).into();
            accounts.charge(principal, GIB, now);
            accounts.on_forgotten(principal, Token::from_random(number.into()), &path("a"), now);
        }
        assert!(accounts.by_principal.len() <= MAX_ACCOUNTS);
        assert!(accounts.forgotten.len() <= MAX_FORGOTTEN);
    }
}

//! Budgets of hosts, on a virtual clock. docs/PROTOCOL.md, "Budgets".

use super::*;

/// A file whose passes are more than the budget of 256 MiB.
const LARGE: u64 = 300 * MIB;

const LEASE: Duration = Duration::from_secs(10);

/// Lab with a repair channel, fast enough for large files: a pass over [`LARGE`] takes 2.6 s, and
/// its budget refills in 80 s.
fn lab() -> Lab {
    let mut lab = Lab::new("1gbit", "239.255.0.0/16", 100);
    let repair = RepairSettings { interleave: 128, repair_port: 9001, lease: LEASE };
    lab.scheduler.settings.repair = Some(repair);
    lab
}

impl Lab {
    fn join_of(
        &mut self,
        host: u32,
        path: &str,
        size: u64,
        kind: MemberKind,
    ) -> Result<Token, JoinRefusal> {
        self.tokens += 1;
        let token = Token::from_random(self.tokens);
        let geometry = Geometry::new(size, page_size()).unwrap();
        let etag = Etag::new("v1").unwrap();
        let newcomer = newcomer_of(host, token.clone(), kind);
        self.scheduler.handle_join(&name(path), &etag, geometry, newcomer, self.now)?;
        Ok(token)
    }

    /// Runs until all that is due was sent, and returns how many files of this size that were.
    fn files_sent(&mut self, size: u64) -> f64 {
        let before = self.scheduler.totals().pages_sent;
        loop {
            let pages = self.scheduler.totals().pages_sent;
            self.run(SECOND);
            if self.scheduler.totals().pages_sent == pages {
                break;
            }
        }
        let pages = self.scheduler.totals().pages_sent - before;
        let file = size.div_ceil(page_size().get().into());
        f64::from(u32::try_from(pages).unwrap()) / f64::from(u32::try_from(file).unwrap())
    }

    fn leave(&mut self, path: &str, token: &Token) {
        assert!(self.scheduler.handle_leave(&name(path), token, self.now).is_some());
    }
}

#[test]
fn a_dead_plain_member_costs_one_large_file_or_five_small_ones() {
    let mut lab = lab();
    lab.join_of(1, "small", 40 * MIB, MemberKind::Plain).unwrap();
    assert!((lab.files_sent(40 * MIB) - 5.0).abs() < 0.001);
    lab.join_of(2, "large", LARGE, MemberKind::Plain).unwrap();
    let files = lab.files_sent(LARGE);
    assert!((1.0..1.001).contains(&files), "{files}");
    assert_eq!(lab.scheduler.budgets().plain, 2);
}

#[test]
fn with_allow_a_dead_plain_member_costs_five_files_and_with_deny_it_is_refused() {
    for (plain, expected) in [(PlainTrust::Allow, 5.0), (PlainTrust::Deny, 0.0)] {
        let mut lab = lab();
        lab.scheduler.settings.plain = plain;
        let joined = lab.join_of(1, "large", LARGE, MemberKind::Plain);
        assert_eq!(joined.is_ok(), plain == PlainTrust::Allow);
        assert!((lab.files_sent(LARGE) - expected).abs() < 0.001, "{plain:?}");
    }
}

#[test]
fn a_used_budget_refuses_plain_joins_of_idle_files_until_it_refills() {
    let mut lab = lab();
    lab.join_of(1, "large", LARGE, MemberKind::Plain).unwrap();
    lab.files_sent(LARGE);
    let refused = lab.join_of(1, "other", LARGE, MemberKind::Plain).unwrap_err();
    let JoinRefusal::BudgetUsedUp { after } = refused else { panic!("{refused:?}") };
    // Others, and casts that others need, are not concerned.
    lab.join_of(2, "other", LARGE, MemberKind::Plain).unwrap();
    lab.join_of(1, "other", LARGE, MemberKind::Plain).unwrap();
    lab.now += 2 * after;
    assert!(lab.join_of(1, "third", LARGE, MemberKind::Plain).is_ok());
}

#[test]
fn a_plain_client_that_joins_again_after_its_pass_gets_five() {
    let mut lab = lab();
    lab.join_of(1, "large", LARGE, MemberKind::Plain).unwrap();
    lab.files_sent(LARGE);
    let token = lab.join_of(1, "large", LARGE, MemberKind::Plain).unwrap();
    // Five budgets, of which one is used, and what refills meanwhile.
    let files = lab.files_sent(LARGE);
    assert!((4.0..4.3).contains(&files), "{files}");
    // Joining in a loop brings no more than the budget refills.
    lab.now += SECOND;
    let again = lab.join_of(1, "large", LARGE, MemberKind::Plain);
    assert!(matches!(again, Err(JoinRefusal::BudgetUsedUp { .. })), "{again:?}");
    assert!(lab.scheduler.handle_leave(&name("large"), &token, lab.now).is_none());
}

#[test]
fn a_plain_client_that_leaves_after_a_pass_pays_nothing() {
    let mut lab = lab();
    for _ in 0..4 {
        // Its leave comes after the end of its pass, as that of every client that lost nothing.
        let token = lab.join_of(1, "large", LARGE, MemberKind::Plain).unwrap();
        let pages = LARGE.div_ceil(page_size().get().into());
        let end = lab.scheduler.totals().pages_sent + pages;
        while lab.scheduler.totals().pages_sent < end {
            lab.run(SECOND / 100);
        }
        lab.scheduler.handle_leave(&name("large"), &token, lab.now);
        lab.run(SECOND);
    }
    // A leave right after the join proves nothing.
    let token = lab.join_of(2, "large", LARGE, MemberKind::Plain).unwrap();
    lab.leave("large", &token);
    lab.join_of(2, "large", LARGE, MemberKind::Plain).unwrap();
    assert!((lab.files_sent(LARGE) - 1.0).abs() < 0.01);
}

#[test]
fn a_host_with_many_files_is_sent_one_budget_of_them() {
    let mut lab = lab();
    for number in 0..20 {
        lab.join_of(1, &format!("file{number}"), LARGE, MemberKind::Plain).unwrap();
    }
    let files = lab.files_sent(LARGE);
    assert!((1.0..1.5).contains(&files), "{files}: a budget, what refilled, and 1 MiB of each");
}

#[test]
fn hosts_that_need_the_same_passes_share_their_price() {
    let mut lab = lab();
    for host in 1..=3 {
        lab.join_of(host, "large", LARGE, MemberKind::Plain).unwrap();
    }
    assert!((lab.files_sent(LARGE) - 1.0).abs() < 0.01);
    // Each was charged a third, so that there is enough for a small file.
    for host in 1..=3 {
        lab.join_of(host, "other", 150 * MIB, MemberKind::Plain).unwrap();
    }
}

#[test]
fn beside_a_member_that_receives_a_dead_plain_member_costs_nothing() {
    let mut lab = lab();
    let extended = lab.join_of(1, "large", LARGE, MemberKind::Extended).unwrap();
    lab.run(HOLD + SECOND / 2);
    let report = Report { sent: 100, received: 100, useful: 100, ..Report::default() };
    lab.scheduler.handle_report(&name("large"), &extended, &report, lab.now);
    lab.join_of(2, "large", LARGE, MemberKind::Plain).unwrap();
    lab.run(3 * SECOND);
    lab.leave("large", &extended);
    let files = lab.files_sent(LARGE);
    assert!(files < 0.5, "{files}: only the beginning, which the plain member missed");
}

#[test]
fn an_extended_member_that_never_reports_costs_one_file_and_then_nothing() {
    let mut lab = lab();
    lab.join_of(1, "large", LARGE, MemberKind::Extended).unwrap();
    let files = lab.files_sent(LARGE);
    assert!((0.99..1.01).contains(&files), "{files}");
    lab.run(LEASE);
    for _ in 0..3 {
        let token = lab.join_of(1, "large", LARGE, MemberKind::Extended).unwrap();
        assert!(lab.files_sent(LARGE) < 0.001, "the budget is used up");
        let report = Report::default();
        assert!(lab.scheduler.handle_report(&name("large"), &token, &report, lab.now));
        lab.run(LEASE);
    }
    // One that receives something is served as ever.
    let token = lab.join_of(1, "large", LARGE, MemberKind::Extended).unwrap();
    let report = Report { sent: 9, received: 9, useful: 9, ..Report::default() };
    lab.scheduler.handle_report(&name("large"), &token, &report, lab.now);
    lab.leave("large", &token);
    lab.join_of(1, "large", LARGE, MemberKind::Extended).unwrap();
    assert!(lab.files_sent(LARGE) > 0.99);
}

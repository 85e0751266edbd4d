//! Everything that may happen, with all rules kept; and what happens when one of them is not.
//!
//! `cargo test -p tollkey-model -- --nocapture` prints how large each exploration was, and for each rule the run in
//! which it is missed. `cargo test -p tollkey-model -- --ignored --nocapture` goes through larger worlds, for some
//! minutes and with some gigabytes of memory.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};
use tollkey_model::{Bounds, Following, Protocol, Rule, Rules, SAFE, Wish};

/// One verifier, and a caller in a process whose own verifier does nothing.
const ONE: Bounds = Bounds {
    lease: 2,
    verifiers: 1,
    callers: &[(Wish::Revoke, None)],
    subscriber: Following::Nobody,
    fine: true,
    stops: false,
    asks: None,
};

/// Something else changes, too.
const TWICE: Bounds = Bounds { callers: &[(Wish::Change, None), (Wish::Revoke, None)], ..ONE };

/// The caller gives up, or does not, and another finds the key revoked already.
const REPEATED: Bounds = Bounds { callers: &[(Wish::Revoke, None), (Wish::Repeat, None)], ..ONE };

/// The verifier may stop in good order.
const STOPPED: Bounds = Bounds { stops: true, ..ONE };

/// Two verifiers, neither in the process of the caller.
const TWO: Bounds = Bounds { verifiers: 2, fine: false, ..ONE };

/// Two verifiers, one of them in the process of the caller.
const AT_HOME: Bounds = Bounds { callers: &[(Wish::Revoke, Some(0))], ..TWO };

/// A change removes the row of a silent verifier, and then comes the revocation.
const REMOVED: Bounds =
    Bounds { lease: 1, fine: false, asks: Some(2), callers: &[(Wish::Change, None), (Wish::Revoke, None)], ..ONE };

/// Two do, at the same time.
const REMOVED_TWICE: Bounds =
    Bounds { callers: &[(Wish::Change, None), (Wish::Change, None), (Wish::Revoke, None)], ..REMOVED };

/// A subscriber.
const FOLLOWED: Bounds = Bounds { subscriber: Following::One, fine: false, ..ONE };

/// A subscriber of the verifier in the caller's process.
const FOLLOWED_AT_HOME: Bounds = Bounds { callers: &[(Wish::Revoke, Some(0))], ..FOLLOWED };

/// A subscriber of a verifier that may stop.
const FOLLOWED_AND_STOPPED: Bounds = Bounds { stops: true, ..FOLLOWED };

/// A subscriber that keeps its replica from reporting, and a change that removes silent rows.
const FOLLOWED_AND_REMOVED: Bounds = Bounds { subscriber: Following::Quiet, ..REMOVED };

/// The same with a lease that is long enough to be renewed while the subscriber holds one.
const FOLLOWED_FOR_LONGER_AND_REMOVED: Bounds = Bounds { lease: 2, ..FOLLOWED_AND_REMOVED };

/// A world in which a rule is missed when it is not kept.
fn world(rule: Rule) -> Bounds {
    match rule {
        Rule::ChangeWithCounter
        | Rule::ShareLock
        | Rule::OnlyAtTheNewest
        | Rule::CountedFromAsking
        | Rule::HoldersSubtract
        | Rule::WaitersAdd
        | Rule::ClocksCountSleep
        | Rule::LeaseBeforeEntry
        | Rule::ApplyingFirst
        | Rule::EvictedLast
        | Rule::OneSnapshot
        | Rule::FillsLook
        | Rule::FillsLookUnderTheLock
        | Rule::FillsLookBeforeVisible
        | Rule::ClockAfterUpdate
        | Rule::ChangesWait => ONE,
        Rule::NumberedAsCommitted | Rule::ReportsExtendNothing => TWICE,
        Rule::RepeatsWait => REPEATED,
        Rule::StoppedStaysStopped | Rule::StopBeforeUnregistering => STOPPED,
        Rule::FreshIds => TWO,
        Rule::OwnVerifierToo => AT_HOME,
        Rule::OnlySilentRemoved => REMOVED,
        Rule::RenewalsNeverRepeat => REMOVED_TWICE,
        Rule::ReportsLeast
        | Rule::RegisteredWithReply
        | Rule::AnswersAcknowledgeNothing
        | Rule::ReplyOfOneMoment
        | Rule::LeasesNest
        | Rule::CountedFromPolling
        | Rule::AppliedBeforeTaken => FOLLOWED,
        Rule::OwnSubscribersToo => FOLLOWED_AT_HOME,
        Rule::LargestLease | Rule::SubscribersOutlived => FOLLOWED_AND_STOPPED,
        Rule::SilenceFromLook => FOLLOWED_FOR_LONGER_AND_REMOVED,
    }
}

/// Goes through everything that may happen in that world with all rules kept.
fn explore(name: &str, bounds: Bounds) {
    let began = Instant::now();
    let checker = Protocol { rules: Rules::all(), bounds }.checker().spawn_bfs().join();
    eprintln!(
        "{name}: {} states, {} steps deep, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f32()
    );
    if let Some(path) = checker.discovery(SAFE) {
        path.into_actions().iter().for_each(|action| eprintln!("    {action}"));
        panic!("{name}: accepted after the answer");
    }
    // That nothing was found is worth something only if what should be possible is.
    checker.assert_properties();
}

#[test]
fn with_all_rules_verifiers_never_accept_what_was_revoked() {
    explore("one verifier", ONE);
    explore("another change", TWICE);
    explore("a repeat", REPEATED);
    explore("a stop", STOPPED);
    explore("two verifiers", TWO);
    explore("two verifiers, one at home", AT_HOME);
    explore("removal", REMOVED);
    explore("removal by two", REMOVED_TWICE);
}

#[test]
fn with_all_rules_subscribers_never_accept_what_was_revoked() {
    explore("a subscriber", FOLLOWED);
    explore("a subscriber at home", FOLLOWED_AT_HOME);
    explore("a subscriber and a stop", FOLLOWED_AND_STOPPED);
    explore("a subscriber and removal", FOLLOWED_AND_REMOVED);
}

#[test]
fn without_any_one_rule_a_revoked_key_is_accepted() {
    let mut needless = Vec::new();
    for &rule in Rule::ALL {
        let protocol = Protocol { rules: Rules::without(rule), bounds: world(rule) };
        let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = checker.discovery(SAFE);
        eprintln!("\nWithout the rule: {rule} ({} states)", checker.unique_state_count());
        match found {
            Some(path) => path.into_actions().iter().for_each(|action| eprintln!("    {action}")),
            None => needless.push(rule),
        }
    }
    assert!(needless.is_empty(), "nothing goes wrong without {needless:?}");
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_longer_leases() {
    explore(
        "longer leases, another change, a repeat, a stop",
        Bounds {
            lease: 3,
            callers: &[(Wish::Change, None), (Wish::Revoke, None), (Wish::Repeat, None)],
            stops: true,
            ..ONE
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_two_verifiers_and_two_changes() {
    explore(
        "two verifiers, one at home, another change",
        Bounds { lease: 1, callers: &[(Wish::Revoke, Some(0)), (Wish::Change, None)], ..TWO },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_removal_by_three() {
    explore(
        "removal by three, with a repeat",
        Bounds {
            callers: &[(Wish::Change, None), (Wish::Change, None), (Wish::Revoke, None), (Wish::Repeat, None)],
            ..REMOVED
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_a_subscriber_and_removal() {
    explore("a subscriber who verifies, and removal", Bounds { subscriber: Following::One, ..REMOVED });
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_a_subscriber_behind_a_load_balancer() {
    explore("a subscriber behind a load balancer", Bounds { subscriber: Following::Any, lease: 1, ..TWO });
}

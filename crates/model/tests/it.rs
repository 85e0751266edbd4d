//! Explores all steps with all rules, and without each rule.
//!
//! `cargo test -p tollkey-model -- --nocapture` prints the size of each exploration, and the counterexample
//! without each rule. `cargo test -p tollkey-model -- --ignored --nocapture` explores larger worlds in some
//! minutes, with some gigabytes of memory.

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};
use tollkey_model::{
    Bounds, COMPLETE, CallerTask, FINISHABLE, Key, Protocol, Rule, Rules, SAFE, SubscriberKind,
};

/// One verifier, and a caller in a process whose own verifier does nothing.
const ONE: Bounds = Bounds {
    lease: 2,
    verifiers: 1,
    callers: &[(CallerTask::Revoke, None)],
    subscriber: SubscriberKind::None,
    fine: true,
    stops: false,
    max_renewals: None,
    keys: &[Key::Parent],
    previous_release: false,
};

/// Another change as well.
const TWO_CHANGES: Bounds = Bounds {
    callers: &[(CallerTask::Change, None), (CallerTask::Revoke, None)],
    ..ONE
};

/// A second caller repeats the revocation.
const REPEATED: Bounds = Bounds {
    callers: &[(CallerTask::Revoke, None), (CallerTask::Repeat, None)],
    ..ONE
};

/// The verifier may stop gracefully.
const STOPPED: Bounds = Bounds { stops: true, ..ONE };

/// Two verifiers, neither in the process of the caller.
const TWO: Bounds = Bounds {
    verifiers: 2,
    fine: false,
    ..ONE
};

/// Two verifiers, one of them in the process of the caller.
const OWN_VERIFIER: Bounds = Bounds {
    callers: &[(CallerTask::Revoke, Some(0))],
    ..TWO
};

/// A change removes the row of a silent verifier before the revocation.
const REMOVED: Bounds = Bounds {
    lease: 1,
    fine: false,
    max_renewals: Some(2),
    callers: &[(CallerTask::Change, None), (CallerTask::Revoke, None)],
    ..ONE
};

/// Two changes remove rows at the same time.
const REMOVED_TWICE: Bounds = Bounds {
    callers: &[
        (CallerTask::Change, None),
        (CallerTask::Change, None),
        (CallerTask::Revoke, None),
    ],
    ..REMOVED
};

/// A subscriber.
const SUBSCRIBED: Bounds = Bounds {
    subscriber: SubscriberKind::One,
    fine: false,
    ..ONE
};

/// A subscriber of the verifier in the caller's process.
const SUBSCRIBED_TO_OWN_VERIFIER: Bounds = Bounds {
    callers: &[(CallerTask::Revoke, Some(0))],
    ..SUBSCRIBED
};

/// A subscriber of a verifier that may stop.
const SUBSCRIBED_AND_STOPPED: Bounds = Bounds {
    stops: true,
    ..SUBSCRIBED
};

/// A subscriber that delays its replica's reports, and a change that removes silent rows.
const SUBSCRIBED_AND_REMOVED: Bounds = Bounds {
    subscriber: SubscriberKind::Quiet,
    ..REMOVED
};

/// The same with a lease that can be renewed while the subscriber holds one.
const SUBSCRIBED_LONGER_AND_REMOVED: Bounds = Bounds {
    lease: 2,
    ..SUBSCRIBED_AND_REMOVED
};

/// One verifier, and every key that the revocation of the parent must reject. A creation runs at the same time.
const DESCENDANTS: Bounds = Bounds {
    keys: &[Key::Parent, Key::Child, Key::Grandchild, Key::OnlyChild],
    callers: &[(CallerTask::Revoke, None), (CallerTask::Mark, None)],
    ..ONE
};

/// The process that revoked the key may crash during the marking; another replica may mark, too.
const MARKED_BY_TWO: Bounds = Bounds {
    keys: &[Key::Child, Key::Grandchild],
    callers: &[
        (CallerTask::Revoke, None),
        (CallerTask::Mark, None),
        (CallerTask::Mark, None),
    ],
    fine: false,
    ..ONE
};

/// The verifier is a server of the previous release.
const PREVIOUS_RELEASE: Bounds = Bounds {
    previous_release: true,
    fine: false,
    ..DESCENDANTS
};

/// Two verifiers, one of them in the process of the caller, and keys that are created during the revocation. A key that
/// is created before it is like one that exists from the beginning.
const DESCENDANTS_AND_OWN_VERIFIER: Bounds = Bounds {
    keys: &[Key::Grandchild, Key::OnlyChild],
    ..OWN_VERIFIER
};

/// A subscriber, and a key that is created during the revocation.
const DESCENDANTS_AND_SUBSCRIBER: Bounds = Bounds {
    keys: &[Key::Grandchild],
    ..SUBSCRIBED
};

/// Returns a world in which a property fails without this rule.
fn world(rule: Rule) -> Bounds {
    match rule {
        Rule::ChangeWithCounter
        | Rule::ShareLock
        | Rule::OnlyUpToDateRenews
        | Rule::LeaseStartsAtRenewal
        | Rule::HoldersSubtract
        | Rule::WaitersAdd
        | Rule::ClocksCountSleep
        | Rule::LeaseBeforeEntry
        | Rule::ApplyingFirst
        | Rule::EvictedLast
        | Rule::OneSnapshot
        | Rule::FillsCheck
        | Rule::FillsCheckAtomically
        | Rule::FillsCheckBeforeVisible
        | Rule::ClockAfterUpdate
        | Rule::ChangesWait => ONE,
        Rule::NumberedAsCommitted | Rule::ReportsExtendNothing => TWO_CHANGES,
        Rule::RepeatsWait => REPEATED,
        Rule::StoppedStaysStopped | Rule::StopBeforeUnregistering => STOPPED,
        Rule::FreshIds => TWO,
        Rule::OwnVerifierToo => OWN_VERIFIER,
        Rule::OnlySilentRemoved => REMOVED,
        Rule::RenewalsNeverRepeat => REMOVED_TWICE,
        Rule::ReportsMinimum
        | Rule::RegisteredWithReply
        | Rule::RepliesAcknowledgeNothing
        | Rule::ReplyInOneStep
        | Rule::LeasesNest
        | Rule::LeaseStartsAtPoll
        | Rule::AppliedBeforeTaken => SUBSCRIBED,
        Rule::OwnSubscribersToo => SUBSCRIBED_TO_OWN_VERIFIER,
        Rule::LargestLease | Rule::SubscribersOutlived => SUBSCRIBED_AND_STOPPED,
        Rule::SilenceFromCheck => SUBSCRIBED_LONGER_AND_REMOVED,
        Rule::AncestorsDecide
        | Rule::AncestorsInSnapshot
        | Rule::DescendantsEvicted
        | Rule::DescendantsReadUnderLock => DESCENDANTS,
        Rule::PendingWithRevocation | Rule::MarkingResumed => MARKED_BY_TWO,
        Rule::CreationChecksAncestors | Rule::CreationLocksAncestors | Rule::MarkingAnnounced => {
            PREVIOUS_RELEASE
        }
    }
}

/// Returns the property that fails without this rule.
fn property(rule: Rule) -> &'static str {
    match rule {
        Rule::PendingWithRevocation | Rule::MarkingResumed => FINISHABLE,
        _ => SAFE,
    }
}

/// Explores a world with all rules, and asserts that its properties hold.
fn explore(name: &str, bounds: Bounds) {
    let began = Instant::now();
    let checker = Protocol {
        rules: Rules::all(),
        bounds,
    }
    .checker()
    .spawn_bfs()
    .join();
    eprintln!(
        "{name}: {} states, {} steps deep, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f32()
    );
    for property in [SAFE, COMPLETE, FINISHABLE] {
        // A world without marking has the first property only.
        if checker
            .model()
            .properties()
            .iter()
            .any(|expected| expected.name == property)
            && let Some(path) = checker.discovery(property)
        {
            path.into_actions()
                .iter()
                .for_each(|action| eprintln!("    {action}"));
            panic!("{name}: violated: {property}");
        }
    }
    // Also asserts the `sometimes` properties: if these situations never occurred, the exploration would
    // prove nothing.
    checker.assert_properties();
}

#[test]
fn verifiers_never_accept_a_revoked_key() {
    explore("one verifier", ONE);
    explore("another change", TWO_CHANGES);
    explore("a repeat", REPEATED);
    explore("a stop", STOPPED);
    explore("two verifiers", TWO);
    explore("two verifiers, one in the caller's process", OWN_VERIFIER);
    explore("removal", REMOVED);
    explore("removal by two", REMOVED_TWICE);
}

#[test]
fn subscribers_never_accept_a_revoked_key() {
    explore("a subscriber", SUBSCRIBED);
    explore(
        "a subscriber of the verifier in the caller's process",
        SUBSCRIBED_TO_OWN_VERIFIER,
    );
    explore("a subscriber and a stop", SUBSCRIBED_AND_STOPPED);
    explore("a subscriber and removal", SUBSCRIBED_AND_REMOVED);
}

#[test]
fn descendants_of_a_revoked_key_are_never_accepted() {
    explore("descendants", DESCENDANTS);
    explore(
        "descendants and two verifiers, one in the caller's process",
        DESCENDANTS_AND_OWN_VERIFIER,
    );
    explore("descendants and a subscriber", DESCENDANTS_AND_SUBSCRIBER);
    explore("marking by two replicas, and a crash", MARKED_BY_TWO);
    explore("a verifier of the previous release", PREVIOUS_RELEASE);
}

#[test]
fn property_fails_if_any_rule_is_left_out() {
    let mut superfluous = Vec::new();
    for &rule in Rule::ALL {
        let protocol = Protocol {
            rules: Rules::without(rule),
            bounds: world(rule),
        };
        let failure = HasDiscoveries::AllOf(BTreeSet::from([property(rule)]));
        let checker = protocol.checker().finish_when(failure).spawn_bfs().join();
        let found = checker.discovery(property(rule));
        eprintln!(
            "\nWithout the rule: {rule} ({} states)",
            checker.unique_state_count()
        );
        match found {
            Some(path) => path
                .into_actions()
                .iter()
                .for_each(|action| eprintln!("    {action}")),
            None => superfluous.push(rule),
        }
    }
    assert!(
        superfluous.is_empty(),
        "no property fails without {superfluous:?}"
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_longer_leases() {
    explore(
        "longer leases, another change, a repeat, a stop",
        Bounds {
            lease: 3,
            callers: &[
                (CallerTask::Change, None),
                (CallerTask::Revoke, None),
                (CallerTask::Repeat, None),
            ],
            stops: true,
            ..ONE
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_two_verifiers_and_two_changes() {
    explore(
        "two verifiers, one in the caller's process, another change",
        Bounds {
            lease: 1,
            callers: &[(CallerTask::Revoke, Some(0)), (CallerTask::Change, None)],
            ..TWO
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_removal_by_three_changes() {
    explore(
        "removal by three, with a repeat",
        Bounds {
            callers: &[
                (CallerTask::Change, None),
                (CallerTask::Change, None),
                (CallerTask::Revoke, None),
                (CallerTask::Repeat, None),
            ],
            ..REMOVED
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_a_subscriber_and_removal() {
    explore(
        "a subscriber that verifies, and removal",
        Bounds {
            subscriber: SubscriberKind::One,
            ..REMOVED
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_descendants_and_a_repeat() {
    explore(
        "descendants, two verifiers, one in the caller's process, a repeat, marking",
        Bounds {
            lease: 1,
            callers: &[
                (CallerTask::Revoke, Some(0)),
                (CallerTask::Repeat, None),
                (CallerTask::Mark, None),
            ],
            ..DESCENDANTS_AND_OWN_VERIFIER
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_with_descendants_and_a_subscriber() {
    explore(
        "descendants, a subscriber of the verifier in the caller's process, marking by two replicas",
        Bounds {
            lease: 1,
            callers: &[
                (CallerTask::Revoke, Some(0)),
                (CallerTask::Mark, None),
                (CallerTask::Mark, None),
            ],
            keys: &[Key::Child, Key::Grandchild, Key::OnlyChild],
            ..SUBSCRIBED
        },
    );
}

#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn properties_hold_behind_a_load_balancer() {
    explore(
        "a subscriber behind a load balancer",
        Bounds {
            subscriber: SubscriberKind::Any,
            lease: 1,
            ..TWO
        },
    );
}

//! Everything that may happen, with all rules kept; and what happens when one of them is left out.
//!
//! `cargo test -p tollkey-model -- --nocapture` prints how large each exploration was, and for each rule the run in
//! which it is missed. `cargo test -p tollkey-model -- --ignored --nocapture` goes through larger worlds, for some
//! minutes and with some gigabytes of memory.

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};
use tollkey_model::{
    Bounds, COMPLETE, FINISHABLE, Following, Key, Protocol, Rule, Rules, SAFE, Wish,
};

/// One verifier, and a caller in a process whose own verifier does nothing.
const ONE: Bounds = Bounds {
    lease: 2,
    verifiers: 1,
    callers: &[(Wish::Revoke, None)],
    subscriber: Following::Nobody,
    fine: true,
    stops: false,
    asks: None,
    keys: &[Key::Parent],
    previous_release: false,
};

/// Something else changes, too.
const TWICE: Bounds = Bounds {
    callers: &[(Wish::Change, None), (Wish::Revoke, None)],
    ..ONE
};

/// The caller gives up, or does not, and another finds the key revoked already.
const REPEATED: Bounds = Bounds {
    callers: &[(Wish::Revoke, None), (Wish::Repeat, None)],
    ..ONE
};

/// The verifier may stop in good order.
const STOPPED: Bounds = Bounds { stops: true, ..ONE };

/// Two verifiers, neither in the process of the caller.
const TWO: Bounds = Bounds {
    verifiers: 2,
    fine: false,
    ..ONE
};

/// Two verifiers, one of them in the process of the caller.
const AT_HOME: Bounds = Bounds {
    callers: &[(Wish::Revoke, Some(0))],
    ..TWO
};

/// A change removes the row of a silent verifier, and then comes the revocation.
const REMOVED: Bounds = Bounds {
    lease: 1,
    fine: false,
    asks: Some(2),
    callers: &[(Wish::Change, None), (Wish::Revoke, None)],
    ..ONE
};

/// Two do, at the same time.
const REMOVED_TWICE: Bounds = Bounds {
    callers: &[
        (Wish::Change, None),
        (Wish::Change, None),
        (Wish::Revoke, None),
    ],
    ..REMOVED
};

/// A subscriber.
const FOLLOWED: Bounds = Bounds {
    subscriber: Following::One,
    fine: false,
    ..ONE
};

/// A subscriber of the verifier in the caller's process.
const FOLLOWED_AT_HOME: Bounds = Bounds {
    callers: &[(Wish::Revoke, Some(0))],
    ..FOLLOWED
};

/// A subscriber of a verifier that may stop.
const FOLLOWED_AND_STOPPED: Bounds = Bounds {
    stops: true,
    ..FOLLOWED
};

/// A subscriber that keeps its replica from reporting, and a change that removes silent rows.
const FOLLOWED_AND_REMOVED: Bounds = Bounds {
    subscriber: Following::Quiet,
    ..REMOVED
};

/// The same with a lease that is long enough to be renewed while the subscriber holds one.
const FOLLOWED_FOR_LONGER_AND_REMOVED: Bounds = Bounds {
    lease: 2,
    ..FOLLOWED_AND_REMOVED
};

/// One verifier, and every key that the revocation of the parent must reject. A creation runs beside the revocation.
const DESCENDANTS: Bounds = Bounds {
    keys: &[Key::Parent, Key::Child, Key::Grandchild, Key::OnlyChild],
    callers: &[(Wish::Revoke, None), (Wish::Mark, None)],
    ..ONE
};

/// The process that revoked the key may crash during the marking; another replica may mark, too.
const MARKED_BY_TWO: Bounds = Bounds {
    keys: &[Key::Child, Key::Grandchild],
    callers: &[(Wish::Revoke, None), (Wish::Mark, None), (Wish::Mark, None)],
    fine: false,
    ..ONE
};

/// The verifier is a server of the previous release.
const PREVIOUS_RELEASE: Bounds = Bounds {
    previous_release: true,
    fine: false,
    ..DESCENDANTS
};

/// Two verifiers, one of them in the process of the caller, and keys that are created beside the revocation. A run in
/// which the creation comes first is one with a key that exists from the beginning.
const DESCENDANTS_AT_HOME: Bounds = Bounds {
    keys: &[Key::Grandchild, Key::OnlyChild],
    ..AT_HOME
};

/// A subscriber, and a key that is created beside the revocation.
const DESCENDANTS_FOLLOWED: Bounds = Bounds {
    keys: &[Key::Grandchild],
    ..FOLLOWED
};

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

/// The property that does not hold without a rule.
fn property(rule: Rule) -> &'static str {
    match rule {
        Rule::PendingWithRevocation | Rule::MarkingResumed => FINISHABLE,
        _ => SAFE,
    }
}

/// Goes through everything that may happen in that world with all rules kept.
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
        // A world without marking does not have the last two properties.
        if checker
            .model()
            .properties()
            .iter()
            .any(|of_world| of_world.name == property)
            && let Some(path) = checker.discovery(property)
        {
            path.into_actions()
                .iter()
                .for_each(|action| eprintln!("    {action}"));
            panic!("{name}: it does not hold that {property}");
        }
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
fn descendants_of_a_revoked_key_are_never_accepted() {
    explore("descendants", DESCENDANTS);
    explore(
        "descendants and two verifiers, one at home",
        DESCENDANTS_AT_HOME,
    );
    explore("descendants and a subscriber", DESCENDANTS_FOLLOWED);
    explore("marking by two replicas, and a crash", MARKED_BY_TWO);
    explore("a verifier of the previous release", PREVIOUS_RELEASE);
}

#[test]
fn without_any_one_rule_a_property_fails() {
    let mut needless = Vec::new();
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
            None => needless.push(rule),
        }
    }
    assert!(
        needless.is_empty(),
        "nothing goes wrong without {needless:?}"
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_longer_leases() {
    explore(
        "longer leases, another change, a repeat, a stop",
        Bounds {
            lease: 3,
            callers: &[
                (Wish::Change, None),
                (Wish::Revoke, None),
                (Wish::Repeat, None),
            ],
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
        Bounds {
            lease: 1,
            callers: &[(Wish::Revoke, Some(0)), (Wish::Change, None)],
            ..TWO
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_removal_by_three() {
    explore(
        "removal by three, with a repeat",
        Bounds {
            callers: &[
                (Wish::Change, None),
                (Wish::Change, None),
                (Wish::Revoke, None),
                (Wish::Repeat, None),
            ],
            ..REMOVED
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_a_subscriber_and_removal() {
    explore(
        "a subscriber who verifies, and removal",
        Bounds {
            subscriber: Following::One,
            ..REMOVED
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_descendants_a_repeat_and_two_verifiers() {
    explore(
        "descendants, two verifiers, one at home, a repeat, marking",
        Bounds {
            lease: 1,
            callers: &[
                (Wish::Revoke, Some(0)),
                (Wish::Repeat, None),
                (Wish::Mark, None),
            ],
            ..DESCENDANTS_AT_HOME
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_descendants_a_subscriber_and_marking() {
    explore(
        "descendants, a subscriber at home, marking by two replicas",
        Bounds {
            lease: 1,
            callers: &[
                (Wish::Revoke, Some(0)),
                (Wish::Mark, None),
                (Wish::Mark, None),
            ],
            keys: &[Key::Child, Key::Grandchild, Key::OnlyChild],
            ..FOLLOWED
        },
    );
}

#[test]
#[ignore = "minutes, and gigabytes of memory"]
fn with_a_subscriber_behind_a_load_balancer() {
    explore(
        "a subscriber behind a load balancer",
        Bounds {
            subscriber: Following::Any,
            lease: 1,
            ..TWO
        },
    );
}

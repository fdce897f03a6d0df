//! Firewall marks by rules of our own.

use super::*;
use crate::lvs::MarkRule;

fn marked() -> House {
    let key = ServiceKey::Mark {
        mark: 7,
        family: Family::V4,
    };
    let rule = |mark, target_ports| MarkRule {
        mark,
        protocol: Some(Protocol::TCP),
        sources: vec![],
        targets: vec![(VIP.into(), 32)],
        target_ports,
        interface: Some("cl0".into()),
    };
    let mut house = house(key, 0, true);
    let old = house.worker.snapshot();
    let parts = Parts {
        id: SnapshotId(old.id.0 + 1),
        role: old.role,
        services: old.services.clone(),
        ports: old.ports.clone(),
        tunables: old.tunables,
        timeouts: old.timeouts,
        limits: old.limits,
    };
    let rules = [rule(9, vec![(22, 22)]), rule(7, vec![(80, 81)])];
    let snapshot = Snapshot::new(parts).with_marks(&rules);
    let now = house.now;
    house
        .worker
        .handle_order(Order::Adopt(Arc::new(snapshot)), now);
    house
}

#[test]
fn rules_lead_to_a_marks_service_and_the_story_says_which() {
    let mut house = marked();
    for port in [80, 81] {
        let (_, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, port), "S"));
        assert_eq!(seen(&inside[0].bytes).1, end(RIP, port), "its own port");
        let (out, _) = house.inside_says(&tcp(OUT, (RIP, CLIENT), (port, 40000), "SA"));
        assert_eq!(seen(&out[0].bytes).0, end(VIP, port));
    }
    let story = {
        let now = house.now;
        house.worker.handle_order(Order::Audit(1), now);
        let mut told = Vec::new();
        while let Some(report) = house.worker.poll_report() {
            if let Report::Account { story, .. } = report {
                told = story;
            }
        }
        told
    };
    assert!(
        story.iter().any(|line| line.contains("mark 7: rule 2")),
        "{story:?}"
    );
    // A mark without a service, and no rule at all: the VIP's own stack says no.
    for port in [22, 443] {
        let (out, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40001, port), "S"));
        assert_eq!((out.len(), inside.len()), (1, 0), "a reset");
    }
}

#[test]
fn a_single_target_of_a_rule_is_a_vip() {
    let house = marked();
    let snapshot = house.worker.snapshot();
    assert!(snapshot.is_vip(&VIP.into()));
    assert_eq!(
        snapshot.marked_vips().collect::<Vec<_>>(),
        [IpAddr::from(VIP)]
    );
}
